// Page-directory entries that point to device memory: a walk must not reach the device.
// expect: any
#include "guests/edge/edge.inc"
        .globl GuestMain
GuestMain:
        movq boot_pml4, %rax
        andq $~0xfff, %rax
        movl $0xfee00007, %ecx
        movq %rcx, 8 * 8(%rax)          // PDPT[8]: 8 GiB
        movabsq $0x200000000, %rdi
        movq (%rdi), %rax
        exit 1
