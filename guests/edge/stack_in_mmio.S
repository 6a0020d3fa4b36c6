// The stack lies in device memory, for pushes, for a call, and for the frame of an exception.
// expect: any
#include "guests/edge/edge.inc"
        .globl GuestMain
GuestMain:
        set_gate 6, handler
        lidt idt_pointer
        movl $0xfee00800, %esp
        pushq $1
        popq %rax
        call function
function:
        movl $0xe0000800, %esp          // nothing at all is there
        pushq $1
        popq %rax
        enter $64, $3
        movl $0xfee00800, %esp
        ud2
handler:
        iretq
        define_idt
