// Loads CR3 with an address far outside memory. The next fetch finds no table.
// expect: shutdown
#include "guests/edge/edge.inc"
        .globl GuestMain
GuestMain:
        movabsq $0x2000000000, %rax
        movq %rax, %cr3
        exit 1
