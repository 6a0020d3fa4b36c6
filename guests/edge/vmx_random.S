// VMCSs with random fields: most describe no guest; the others run until something makes them come out, or not.
// expect: any
#include "guests/edge/vmx.inc"

        .globl GuestMain
GuestMain:
        lidt idt_pointer
        movl $1, %eax
        cpuid
        testl $1 << 5, %ecx
        jz done                         // no VMX
        prepare_vmx
        vmxon vmxon_pointer
        movabsq $0x9e3779b97f4a7c15, %rbx
        movl $20000, %r12d
again:  vmclear vmcs_pointer
        vmptrld vmcs_pointer
        pushq %rbx
        call describe
        popq %rbx
        add_bits PIN, 1 << 6            // the preemption timer ends what does not end
        add_bits PRIMARY, 1 << 31
        write TIMER, $5000
        write EXCEPTIONS, $-1
        write GUEST_RIP, $code
        // Some fields that are not the host's.
        call random
        movl %ebx, %r13d
        shrl $8, %r13d
        andl $7, %r13d
1:      call random
        movq %rbx, %rcx
        shrq $20, %rcx
        movq %rcx, %rax
        andl $0x603e, %ecx              // width, and a low index
        andl $0xc00, %eax
        cmpl $0xc00, %eax
        je 1b
        orl %eax, %ecx
        vmread %rcx, %r14
        call random
        movq %rbx, %rax
        shrq $13, %rax
        btq $61, %rbx
        jc 2f
        andl $0x3f, %eax                // half of the values are small
2:      btq $62, %rbx
        jc 3f
        xorq %r14, %rax                 // and half of them change a few bits
        movq %rbx, %rdx
        shrq $40, %rdx
        andq %rdx, %rax
        xorq %r14, %rax
3:      vmwrite %rax, %rcx
        decl %r13d
        jns 1b
        pushq %rbx
        pushq %r12
        movq %rsp, saved
        call launch
        movq saved, %rsp
        popq %r12
        popq %rbx
        decl %r12d
        jnz again
done:   exit 0

random: movabsq $6364136223846793005, %rdx
        imulq %rdx, %rbx
        addq $1, %rbx
        ret

code:   pushfq
        popq %rax
        movq %cr0, %rax
        movq %rax, %cr0
        inb $0x80, %al
        cpuid
        hlt
        vmcall

        define_idt
        define_vmx
        .bss
saved:  .skip 8
