// Reads and writes 4,096 pseudo-random ports in all sizes. Left out are those that end or reset the
// machine by design: 64h, 92h, B2h, F4h to F7h, CF9h, and 400h upwards with what firmware places there.
// expect: exit 1
#include "guests/edge/edge.inc"
        .globl GuestMain
GuestMain:
        movl $0x12345679, %ebx
        movl $4096, %ecx
next:   imull $1664525, %ebx, %ebx
        addl $1013904223, %ebx
        movl %ebx, %edx
        shrl $16, %edx
        andl $0x3ff, %edx
        // An access of up to 4 bytes must not reach a port left out.
        leal -0x61(%rdx), %eax
        cmpl $0x64 - 0x61, %eax
        jbe skip
        leal -0x8f(%rdx), %eax
        cmpl $0x92 - 0x8f, %eax
        jbe skip
        leal -0xaf(%rdx), %eax
        cmpl $0xb2 - 0xaf, %eax
        jbe skip
        leal -0xf1(%rdx), %eax
        cmpl $0xf7 - 0xf1, %eax
        jbe skip
        leal -0x3f5(%rdx), %eax         // the console: it would only print rubbish
        cmpl $0x3ff - 0x3f5, %eax
        jbe skip
        inb %dx, %al
        inw %dx, %ax
        inl %dx, %eax
        movl %ebx, %eax
        outb %al, %dx
        outw %ax, %dx
        outl %eax, %dx
skip:   loop next
        exit 0
