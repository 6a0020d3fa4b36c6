// INT3 and single steps, and DR6 that tells which it was.
// expect: exit 1
#include "guests/edge/edge.inc"
        .globl GuestMain
GuestMain:
        set_gate 1, debug
        set_gate 3, breakpoint
        lidt idt_pointer
        xorl %ebx, %ebx
        xorl %r12d, %r12d

        // INT3 is a trap: RIP behind it.
        int3
after_int3:
        cmpl $1, %r12d
        require e, 1

        // TF: a trap behind each instruction, from the one behind POPF to the one that clears TF again.
        pushfq
        orl $0x100, (%rsp)
        popfq
        nop                             // 1
        incl %eax                       // 2
        pushfq                          // 3
        andl $~0x100, (%rsp)            // 4
        popfq                           // 5: TF was set when it began
        cmpl $5, %ebx
        require e, 2
        btl $14, %r13d                  // DR6.BS
        require c, 3
        exit 0

breakpoint:
        cmpq $after_int3, (%rsp)
        require e, 20
        incl %r12d
        iretq

debug:  incl %ebx
        pushq %rax
        movq %dr6, %rax
        movl %eax, %r13d
        popq %rax
        iretq
        define_idt
