// The status of the process is that of isa-debug-exit: (21 << 1) | 1.
// expect: exit 43
// console: twenty-one
#include "guests/edge/edge.inc"
        .globl GuestMain
GuestMain:
        print text
        exit 21
text:   .asciz "twenty-one\n"
