// Prints what every clock shows, and a random number, before and after work and a sleep that the
// APIC's timer ends.
// expect: exit 1
#include "guests/edge/edge.inc"
#include "guests/edge/smp.inc"

        .globl GuestMain
GuestMain:
        movb $0xff, %al                 // both PICs masked
        outb %al, $0x21
        outb %al, $0xa1
        set_gate 0x40, tick
        set_gate 0xff, spurious
        lidt idt_pointer
        enable_apic
        movl $0x0b, 0x3e0(%rsi)         // the timer divides by 1
        movl $0x00040, 0x320(%rsi)      // one-shot, vector 40h
        movl $3, %r12d
rounds: rdtsc
        shlq $32, %rdx
        orq %rdx, %rax
        call hex
        movw $0x608, %dx                // ACPI's timer
        inl %dx, %eax
        call hex
        movb $0, %al                    // the PIT's counter 0, latched
        outb %al, $0x43
        inb $0x40, %al
        movb %al, %ah
        inb $0x40, %al
        movzwl %ax, %eax
        call hex
        movl $0xfed00000, %edi          // the HPET's counter
        movl $1, 0x10(%rdi)
        movl 0xf0(%rdi), %eax
        call hex
        movb $0, %al                    // the real-time clock's seconds
        outb %al, $0x70
        inb $0x71, %al
        movzbl %al, %eax
        call hex
        rdrand %rax
        call hex
        movl $1000000, %ecx
1:      decl %ecx
        jnz 1b
        movl $50000, 0x380(%rsi)        // starts the timer
        sti
        hlt
        cli
        decl %r12d
        jnz rounds
        exit 0

// Prints RAX and a line's end.
hex:    movl $16, %ecx
        movq %rax, %rbx
        movw $0x3f8, %dx
1:      rolq $4, %rbx
        movl %ebx, %eax
        andl $15, %eax
        movb digits(%rax), %al
        outb %al, %dx
        decl %ecx
        jnz 1b
        movb $'\n', %al
        outb %al, %dx
        ret

tick:   movl $0, 0xb0(%rsi)             // RSI: the APIC
spurious:
        iretq
        define_idt
        .data
digits: .ascii "0123456789abcdef"
