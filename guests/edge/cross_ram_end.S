// Loads, stores and atomics that begin in the last bytes of memory and end where there is none.
// expect: any
#include "guests/edge/edge.inc"
        .globl GuestMain
GuestMain:
        movl 8(%rdi), %eax              // mem_upper in KiB
        addl $1024, %eax
        shlq $10, %rax
        leaq -3(%rax), %rdi
        movq (%rdi), %rcx
        movq %rcx, (%rdi)
        lock addq $1, (%rdi)
        leaq -8(%rax), %rdi
        pushq (%rdi)
        movl $64, %ecx
        rep stosb
        exit 0
