// Takes an exception with an empty IDT: double fault, then shutdown.
// expect: shutdown
#include "guests/edge/edge.inc"
        .globl GuestMain
GuestMain:
        lidt empty
        int3
        exit 1
        .data
empty:  .word 0
        .quad 0
