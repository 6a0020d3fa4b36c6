// Jumps to an address where a device is, not memory.
// expect: stops
#include "guests/edge/edge.inc"
        .globl GuestMain
GuestMain:
        movl $0xfee00000, %eax
        jmp *%rax
