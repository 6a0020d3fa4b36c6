// Exceptions for ever whose handler reads a device and faults before it completes an instruction: the same
// page is asked again and again, and the guest goes on all the same.
// expect: runs
#include "guests/edge/edge.inc"
        .globl GuestMain
GuestMain:
        set_gate 13, again
        movl $task_state, %eax
        movl %eax, %ecx
        shll $16, %eax
        orl $0x67, %eax
        movl %eax, gdt + TASK_STATE
        shrl $16, %ecx
        orl $0x8900, %ecx
        movl %ecx, gdt + TASK_STATE + 4
        movq $fault_stack_end, task_state + 0x24 // IST1
        movl $TASK_STATE, %eax
        ltr %ax
        movb $1, idt + 16 * 13 + 4
        lidt idt_pointer
        movl $0xe0000000, %ebx
again:  lssq (%rbx), %rsp               // FFFFh is no stack segment: #GP
        define_idt
        .bss
        .balign 16
task_state:
        .skip 0x68
        .balign 16
        .skip 4096
fault_stack_end:
