// Breakpoints on instructions and on data, and DR6 that tells which it was.
// expect: exit 1
#include "guests/edge/edge.inc"
        .globl GuestMain
GuestMain:
        set_gate 1, debug
        lidt idt_pointer

        // A breakpoint on an instruction is a fault: RIP at it, RF lets it pass.
        xorl %ebx, %ebx
        xorl %r13d, %r13d
        movl $target, %eax
        movq %rax, %dr0
        movl $0x401 | 1, %eax           // L0, execute, one byte
        movq %rax, %dr7
        nop
target: incl %ebp
        cmpl $1, %ebx
        require e, 4
        btl $0, %r13d                   // DR6.B0
        require c, 5
        cmpq $target, %r14
        require e, 6

        // A write to four bytes is a trap behind the instruction; a read is none.
        xorl %ebx, %ebx
        xorl %r13d, %r13d
        movl $word, %eax
        movq %rax, %dr1
        movl $0x00d00404, %eax          // L1, write, four bytes
        movq %rax, %dr7
        movl word, %ecx
        movl word - 4, %ecx
        movl %ecx, word + 4
        testl %ebx, %ebx
        require z, 7
        movb %cl, word + 3
behind: cmpl $1, %ebx
        require e, 8
        btl $1, %r13d                   // DR6.B1
        require c, 9
        cmpq $behind, %r14
        require e, 10
        movl $0x400, %eax
        movq %rax, %dr7
        exit 0

debug:  incl %ebx
        pushq %rax
        movq %dr6, %rax
        movl %eax, %r13d
        movl $0xffff0ff0, %eax
        movq %rax, %dr6
        movq 8(%rsp), %r14
        orl $0x10000, 24(%rsp)          // RF
        popq %rax
        iretq
        define_idt
        .data
        .balign 16
        .skip 4
word:   .skip 12
