// Atomic and 16-byte accesses to device memory.
// expect: any
#include "guests/edge/edge.inc"
        .globl GuestMain
GuestMain:
        movl $0xfee00080, %edi          // the local APIC's task priority
        movl $1, %eax
        lock xaddl %eax, (%rdi)
        xchgq %rax, (%rdi)
        lock cmpxchg16b (%rdi)
        lock btsl $40, (%rdi)
        exit 0
