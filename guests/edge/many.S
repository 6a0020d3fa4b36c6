// Sixty-four processors at once: all count together under LOCK, halt, and are woken by one
// interrupt to all of them. Exit value: 0, or what failed.
// cpus: 64
// expect: exit 1
#include "guests/edge/edge.inc"
#include "guests/edge/smp.inc"
#define OTHERS 63
#define ROUNDS 1000
#define VECTOR 0x41

        .globl GuestMain
GuestMain:
        set_gate VECTOR, woken
        start_other
1:      pause
        cmpl $OTHERS, ready
        jb 1b
        cmpl $OTHERS * ROUNDS, total
        require e, 1
        movl $APIC, %esi
        movl $0x000c4000 | VECTOR, 0x300(%rsi)  // all but self
2:      pause
        cmpl $OTHERS, awake
        jb 2b
        exit 0

other:
        movl $1, %eax
        lock xaddl %eax, numbered
        incl %eax
        shll $8, %eax
        leal stacks(%rax), %esp
        enable_apic
        lidt idt_pointer
        movl $ROUNDS, %ecx
1:      lock incl total
        decl %ecx
        jnz 1b
        lock incl ready
2:      sti
        hlt
        jmp 2b

woken:  lock incl awake
        movl $APIC, %esi
        movl $0, 0xb0(%rsi)
        iretq

        define_smp
        define_idt
        .bss
        .balign 64
total:  .long 0
        .balign 64
ready:  .long 0
awake:  .long 0
numbered: .long 0
        .balign 16
stacks: .skip 256 * 64
