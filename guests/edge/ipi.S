// Interrupts from one processor to another, which sleeps between them: fixed ones by physical and
// logical destination, and NMIs.
// cpus: 2
// expect: exit 1
#include "guests/edge/edge.inc"
#include "guests/edge/smp.inc"
#define ROUNDS 100

// Sends ICR `low` to `destination`, and waits until `counter` has reached EBX.
        .macro send low, destination, counter
        movl $(\destination << 24), 0x310(%rsi)
        movl $\low, 0x300(%rsi)
1:      pause
        cmpl %ebx, \counter
        jb 1b
        .endm

        .globl GuestMain
GuestMain:
        set_gate 0x40, fixed
        set_gate 0x02, nmi
        set_gate 0xff, spurious
        start_other
1:      pause
        cmpl $1, ready
        jne 1b
        movl $APIC, %esi
        movl $1, %ebx
2:      send 0x00004040, 1, fixed_count       // physical
        send 0x00004400, 1, nmi_count
        incl %ebx
        cmpl $ROUNDS, %ebx
        jbe 2b
3:      send 0x00004840, 2, fixed_count       // logical
        incl %ebx
        cmpl $(2 * ROUNDS), %ebx
        jbe 3b
        exit 0

other:
        lidt idt_pointer
        enable_apic
        movl $0xffffffff, 0xe0(%rsi)    // flat logical destinations
        movl $0x02000000, 0xd0(%rsi)
        movl $1, ready
        sti
1:      hlt
        jmp 1b
fixed:  lock incl fixed_count
        movl $0, 0xb0(%rsi)             // RSI: the APIC, set before
        iretq
nmi:    lock incl nmi_count
spurious:
        iretq
        define_smp
        define_idt
        .bss
ready:  .long 0
fixed_count: .long 0
nmi_count: .long 0
