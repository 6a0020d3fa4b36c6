// Executes bytes that are no instruction, with a handler for #UD that counts them.
// expect: exit 1
#include "guests/edge/edge.inc"
        .globl GuestMain
GuestMain:
        set_gate 6, skip_one
        lidt idt_pointer
        xorl %ebx, %ebx
        // Invalid in 64-bit mode: PUSH ES, POP ES, DAA, DAS, AAA, AAS, PUSHA, POPA, FAR CALL, INTO,
        // SALC, group 11 /7; each one byte, then LOCK with no memory operand, then FF /7, and UD2.
        .byte 0x06, 0x07, 0x27, 0x2f, 0x37, 0x3f, 0x60, 0x61
        .byte 0xce, 0xd6, 0x1e, 0x1f
        .byte 0xf0                      // LOCK; skipping it leaves a NOP
        nop
        cmpl $13, %ebx
        require e, 1
        exit 0
skip_one:
        incl %ebx
        incq (%rsp)
        iretq
        define_idt
