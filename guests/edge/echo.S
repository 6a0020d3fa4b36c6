// Prints what is typed, and ends with q.
// expect: runs
#include "guests/edge/edge.inc"
        .globl GuestMain
GuestMain:
1:      movw $0x3fd, %dx                // something received?
        inb %dx, %al
        testb $1, %al
        jz 1b
        movw $0x3f8, %dx
        inb %dx, %al
        outb %al, %dx
        cmpb $'q', %al
        jne 1b
        exit 3
