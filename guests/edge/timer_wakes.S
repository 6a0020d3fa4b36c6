// HLT with interrupts on, woken by the local APIC's timer, three times.
// expect: exit 1
#include "guests/edge/edge.inc"
#define APIC 0xfee00000
        .globl GuestMain
GuestMain:
        movb $0xff, %al                 // both PICs masked
        outb %al, $0x21
        outb %al, $0xa1
        set_gate 0x40, tick
        set_gate 0xff, spurious
        lidt idt_pointer
        movl $APIC, %esi
        movl $0x1ff, 0xf0(%rsi)         // enabled, spurious vector FFh
        movl $0, 0x80(%rsi)             // task priority
        movl $0x0b, 0x3e0(%rsi)         // divide by 1
        movl $0x40, 0x320(%rsi)         // one shot, vector 40h
        xorl %ebx, %ebx
1:      movl %ebx, %ebp
        movl $100000, 0x380(%rsi)
2:      sti
        hlt
        cli
        cmpl %ebx, %ebp
        je 2b
        cmpl $3, %ebx
        jb 1b
        exit 0
tick:   incl %ebx
        movl $0, 0xb0(%rsi)             // end of interrupt
spurious:
        iretq
        define_idt
