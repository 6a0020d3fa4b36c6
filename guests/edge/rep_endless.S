// One instruction that only moves memory, over 128 TiB of it: the PML4 is every table and every page.
// expect: runs
#include "guests/edge/edge.inc"
        .globl GuestMain
GuestMain:
        movl $boot_pml4 + 0x27, %eax
        movl $boot_pml4 + 8, %edi
        movl $255, %ecx
        rep stosq
        movabsq $0x8000000000, %rsi
        movabsq $1 << 46, %rcx
        rep lodsb
        exit 1
