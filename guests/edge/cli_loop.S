// Loops with interrupts off.
// expect: runs
#include "guests/edge/edge.h"
        .globl GuestMain
GuestMain:
        cli
1:      jmp 1b
