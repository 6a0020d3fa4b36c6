// Control blocks of random bytes: most describe no guest; the others run until something makes them
// come out, or not.
// expect: any
#include "guests/edge/edge.inc"
        .globl GuestMain
GuestMain:
        movl $0x80000001, %eax
        cpuid
        testl $4, %ecx
        jz done                         // no SVM
        movl $0xc0000080, %ecx
        rdmsr
        orl $0x1000, %eax               // EFER.SVME
        wrmsr
        movl $20000, %r12d
        movabsq $0x9e3779b97f4a7c15, %rbx
again:  movl $block, %edi
        movl $512, %ecx
1:      movabsq $6364136223846793005, %rdx
        imulq %rdx, %rbx
        addq $1, %rbx
        movq %rbx, %rax
        shrq $17, %rax
        // Half of the words keep some sense: few bits.
        btq $60, %rbx
        jc 2f
        movq %rbx, %rdx
        shrq $31, %rdx
        andq %rdx, %rax
        andq $0xff, %rax
2:      stosq
        decl %ecx
        jnz 1b
        // What every guest needs to be entered, and to come out again.
        orl $3, block + 0x010           // VMRUN, VMMCALL
        orl $1 << 31 | 1 << 24, block + 0x00c
        movl $1, block + 0x058          // ASID
        movl $-1, block + 0x008         // all exceptions
        btq $61, %rbx
        jc 3f
        movq %cr0, %rax
        movq %rax, block + 0x558
        movq %cr3, %rax
        movq %rax, block + 0x550
        movq %cr4, %rax
        movq %rax, block + 0x548
        movl $0xc0000080, %ecx
        rdmsr
        movl %eax, block + 0x4d0
        movl $0, block + 0x4d4
        movl $0, block + 0x564
        movl $0, block + 0x56c
        btq $62, %rbx
        jc 3f
        movw $0xa9b, block + 0x412
        movq $code, block + 0x578
        movb $0, block + 0x4cb
3:      movl $block, %eax
        pushq %rbx
        pushq %r12
        movq %rsp, saved
        clgi
        vmrun
        movq saved, %rsp
        popq %r12
        popq %rbx
        stgi
        decl %r12d
        jnz again
done:   exit 0

// Half of the guests run this, which comes out at once.
code:   pushfq
        popq %rax
        cpuid
        hlt
        vmmcall

        .bss
        .balign 4096
block:  .skip 4096
saved:  .skip 8
