// Eight processors that halt with interrupts on and nothing to wait for: none of them costs the host
// anything.
// cpus: 8
// expect: runs
#include "guests/edge/edge.inc"
#include "guests/edge/smp.inc"
        .globl GuestMain
GuestMain:
        start_other
1:      sti
        hlt
        jmp 1b
other:
        enable_apic
1:      sti
        hlt
        jmp 1b
        define_smp
