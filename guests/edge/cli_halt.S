// Halts with interrupts off: nothing can wake it.
// expect: runs
#include "guests/edge/edge.inc"
        .globl GuestMain
GuestMain:
        cli
        hlt
        exit 1
