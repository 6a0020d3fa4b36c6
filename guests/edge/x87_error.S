// With CR0.NE clear an x87 error is IRQ 13, and port F0h lets its handler use the unit.
// expect: exit 1
#include "guests/edge/edge.inc"
#define NUMERIC_ERROR 0x20
#define EMULATION_AND_TASK 0x0c
        .globl GuestMain
GuestMain:
        movb $0xfb, %al                 // all masked but IRQ 13 and the way to it
        outb %al, $0x21
        movb $0xdf, %al
        outb %al, $0xa1
        set_gate 0x75, error
        lidt idt_pointer
        movq %cr0, %rax
        andl $~(NUMERIC_ERROR | EMULATION_AND_TASK), %eax
        movq %rax, %cr0
        fninit
        pushq $0x37b                    // division by zero unmasked
        fldcw (%rsp)
        xorl %ebx, %ebx
        xorl %ebp, %ebp
        sti
1:      fld1
        fldz
        fdivrp
        fwait
        incl %ebp
        cmpl %ebx, %ebp
        require e, 1
        fninit
        fldcw (%rsp)
        cmpl $3, %ebp
        jb 1b
        exit 0
error:  incl %ebx
        outb %al, $0xf0
        fld1                            // waits, were the error not ignored
        fwait
        fnclex
        movb $0x20, %al
        outb %al, $0xa0
        outb %al, $0x20
        iretq
        define_idt
