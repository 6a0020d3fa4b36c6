// Faults in the middle of instructions: what was done stays done, what was not leaves no trace, and the
// instruction goes on where it was.
// expect: exit 1
#include "guests/edge/edge.inc"
#define WINDOW 0x8000000000             // 4 KiB pages of our own, every other one not present
        .globl GuestMain
GuestMain:
        movl $pdpt + 7, %eax
        movq %rax, boot_pml4 + 8
        movl $pd + 7, %eax
        movq %rax, pdpt
        movl $pt + 7, %eax
        movq %rax, pd
        movl $page0 + 7, %eax
        movq %rax, pt
        movl $page1 + 6, %eax           // not present yet
        movq %rax, pt + 8
        movq %cr3, %rax
        movq %rax, %cr3
        set_gate 14, page_fault
        lidt idt_pointer

        // REP STOSB of 200 bytes, 100 before the boundary.
        movabsq $WINDOW + 4096 - 100, %rdi
        movl $200, %ecx
        movl $0x55, %eax
        call prepare
        rep stosb
        cmpl $1, %r12d                  // one fault
        require e, 1
        cmpq $100, %r13                 // RCX at the fault
        require e, 2
        movabsq $WINDOW + 4096, %rax
        cmpq %rax, %r14                 // RDI at the fault
        require e, 3
        testl %ecx, %ecx
        require z, 4
        cmpb $0x55, page0 + 4095
        require e, 5
        cmpb $0x55, page1 + 99
        require e, 6
        cmpb $0, page1 + 100
        require e, 7

        // A store across the boundary: no byte is written before the fault.
        movabsq $WINDOW + 4096 - 4, %rdi
        movl $0, page0 + 4092
        call prepare
        movq $-1, %rax
        movq %rax, (%rdi)
        cmpl $1, %r12d
        require e, 10
        testl %r15d, %r15d              // what page0's last word was at the fault
        require z, 11
        movabsq $WINDOW + 4096, %rax
        movq %cr2, %rcx
        cmpq %rcx, %rax
        require e, 12

        // ADD to memory: flags and memory change once.
        movabsq $WINDOW + 4096, %rdi
        movq $41, page1
        call prepare
        stc
        adcq $0, (%rdi)
        require nc, 20
        cmpq $42, page1
        require e, 21
        cmpl $1, %r12d
        require e, 22

        // PUSH and CALL that fault leave RSP; POP to memory that faults leaves RSP, too.
        movq %rsp, %rbp
        movabsq $WINDOW + 4096 + 8, %rsp
        movq %rsp, %rbx
        andl $~1, pt + 8
        invlpg -8(%rsp)
        xorl %r12d, %r12d
        pushq $7
        subq $8, %rbx
        cmpq %rsp, %rbx
        require e, 30
        cmpl $1, %r12d
        require e, 31
        cmpq $7, page1
        require e, 32
        movq %rbp, %rsp
        movq $0x1234, %rax
        pushq %rax
        movabsq $WINDOW + 4096 + 16, %rdi
        call prepare
        movq %rsp, %rbx
        popq (%rdi)
        addq $8, %rbx
        cmpq %rsp, %rbx
        require e, 33
        cmpq $0x1234, page1 + 16
        require e, 34

        // CMPXCHG, XADD and XCHG that fault leave their registers.
        movabsq $WINDOW + 4096, %rdi
        movq $5, page1
        movl $5, %eax
        movl $6, %ecx
        call prepare
        lock cmpxchgq %rcx, (%rdi)
        require e, 40
        cmpq $6, page1
        require e, 41
        call prepare
        movl $10, %ecx
        lock xaddq %rcx, (%rdi)
        cmpl $6, %ecx
        require e, 42
        cmpq $16, page1
        require e, 43
        exit 0

// Makes the second page not present, and forgets earlier faults.
prepare:
        andl $~1, pt + 8
        pushq %rax
        movabsq $WINDOW + 4096, %rax
        invlpg (%rax)
        popq %rax
        xorl %r12d, %r12d
        ret

// Notes what it finds and makes the page present. The stack may be the window itself, so IST is not used:
// the handler runs on the stack of the fault, except in the PUSH case, where #PF would fault again; there
// RSP is in the page that is missing, so the frame goes below it, into the page before.
page_fault:
        incl %r12d
        movq %rcx, %r13
        movq %rdi, %r14
        movl page0 + 4092, %r15d
        orl $1, pt + 8
        addq $8, %rsp
        iretq
        define_idt
        .bss
        .balign 4096
pdpt:   .skip 4096
pd:     .skip 4096
pt:     .skip 4096
page0:  .skip 4096
page1:  .skip 4096
