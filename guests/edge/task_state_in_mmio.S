// The TSS and the stacks that it names lie in device memory, the descriptor tables after them.
// expect: any
#include "guests/edge/edge.inc"
        .globl GuestMain
GuestMain:
        movl $0x00000067, gdt + TASK_STATE
        movl $0xfe008900 | 0xe0, gdt + TASK_STATE + 4 // base FEE00000h
        movl $TASK_STATE, %eax
        ltr %ax
        set_gate 6, handler
        movb $1, idt + 16 * 6 + 4       // IST1, from the device
        lidt idt_pointer
        lgdt pointer
        movl $KERNEL_DATA, %eax
        movl %eax, %ds
        ud2
handler:
        exit 1
        define_idt
        .data
pointer:
        .word 0xfff
        .quad 0xfee00000
