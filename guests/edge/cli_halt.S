// Halts with interrupts off: nothing can wake it.
// expect: runs
#include "guests/edge/edge.h"
        .globl GuestMain
GuestMain:
        cli
        hlt
        exit 1
