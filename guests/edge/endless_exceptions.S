// An exception whose handler begins with the same exception, always on the same stack: no instruction ever
// completes.
// expect: runs
#include "guests/edge/edge.inc"
        .globl GuestMain
GuestMain:
        movq $fault_stack_end, task_state + 0x24 // IST1
        movl $task_state, %eax
        movl %eax, %ecx
        shll $16, %eax
        orl $0x67, %eax
        movl %eax, gdt + TASK_STATE
        shrl $16, %ecx
        orl $0x8900, %ecx
        movl %ecx, gdt + TASK_STATE + 4
        movl $TASK_STATE, %eax
        ltr %ax
        set_gate 6, again
        movb $1, idt + 16 * 6 + 4
        lidt idt_pointer
again:  ud2
        define_idt
        .bss
        .balign 16
task_state:
        .skip 0x68
        .balign 16
        .skip 4096
fault_stack_end:
