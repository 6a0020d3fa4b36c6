// Executes 64 KiB of pseudo-random bytes in ring 0, without an IDT. Anything may come of it.
// expect: any
#include "guests/edge/edge.inc"
        .globl GuestMain
GuestMain:
        movl $buffer, %edi
        movl $0x10000, %ecx
        movl $0x12345679, %eax
1:      imull $1664525, %eax, %eax
        addl $1013904223, %eax
        movl %eax, %edx
        shrl $24, %edx
        movb %dl, (%rdi)
        incq %rdi
        loop 1b
        movl $buffer, %eax
        jmp *%rax
        .bss
buffer: .skip 0x10000
