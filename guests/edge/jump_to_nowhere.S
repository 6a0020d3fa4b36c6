// Jumps to a physical address behind which nothing is.
// expect: stops
#include "guests/edge/edge.inc"
        .globl GuestMain
GuestMain:
        movl $0xe0000000, %eax
        jmp *%rax
