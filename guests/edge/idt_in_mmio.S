// The IDT lies in device memory: what the device answers is not a gate.
// expect: any
#include "guests/edge/edge.inc"
        .globl GuestMain
GuestMain:
        lidt pointer
        ud2
        exit 1
        .data
pointer:
        .word 16 * 256 - 1
        .quad 0xfee00000
