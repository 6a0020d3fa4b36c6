// Loops with interrupts off.
// expect: runs
#include "guests/edge/edge.inc"
        .globl GuestMain
GuestMain:
        cli
1:      jmp 1b
