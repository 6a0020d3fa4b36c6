// REP MOVSB with the largest count, across the end of mapped memory.
// expect: shutdown
#include "guests/edge/edge.inc"
        .globl GuestMain
GuestMain:
        movq $-1, %rcx
        movl $buffer, %edi
        movl $0xffffff00, %esi
        addq $0x80, %rsi
        rep movsb                       // the source leaves the mapped 4 GiB after 128 bytes
        exit 1
        .bss
buffer: .skip 256
