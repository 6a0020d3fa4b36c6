// CR3 points to a device, then every table is nothing but what the empty bus answers.
// expect: any
#include "guests/edge/edge.inc"
        .globl GuestMain
GuestMain:
        movl $0xfee00000, %eax
        movq %rax, %cr3
        nop
        movl $0xe0000000, %eax
        movq %rax, %cr3
        nop
        exit 1
