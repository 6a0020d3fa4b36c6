// Prints as fast as it can, for ever, without looking at the port's status.
// expect: runs
#include "guests/edge/edge.inc"
        .globl GuestMain
GuestMain:
        movw $0x3f8, %dx
        movl $0x20, %eax
1:      outb %al, %dx
        incl %eax
        cmpl $0x7f, %eax
        jb 1b
        movl $0x0a, %eax
        outb %al, %dx
        movl $0x20, %eax
        jmp 1b
