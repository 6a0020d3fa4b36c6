// One instruction that lasts: REP OUTSB with a count of 2^60. It can be interrupted between two bytes.
// expect: runs
#include "guests/edge/edge.inc"
        .globl GuestMain
GuestMain:
        std                             // downwards and up again: stays in mapped memory for long
        movl $0xfff00000, %esi
        movabsq $1 << 60, %rcx
        movw $0x80, %dx
        rep outsb
        exit 1
