// A page fault whose delivery faults again: #DF with error code 0, on the stack of its IST entry.
// expect: exit 1
#include "guests/edge/edge.inc"
        .globl GuestMain
GuestMain:
        movq $good_stack_end, task_state + 0x24 // IST1
        movw $0x68, task_state + 0x66
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
        set_gate 8, double_fault
        set_gate 14, never
        movb $1, idt + 16 * 8 + 4       // #DF on IST1
        lidt idt_pointer
        // A stack where nothing is mapped: the push faults, and so does the frame of that #PF.
        movabsq $0x5000000000, %rsp
fault:  pushq %rax
never:  exit 1
double_fault:
        cmpq $good_stack_end - 48, %rsp
        require e, 2
        cmpq $0, (%rsp)                 // error code
        require e, 3
        cmpq $fault, 8(%rsp)
        require e, 4
        movabsq $0x5000000000, %rax
        cmpq %rax, 32(%rsp)             // RSP as before the push
        require e, 5
        // CR2 is that of the second page fault or of the first; both lie below the stack.
        movq %cr2, %rcx
        subq %rcx, %rax
        cmpq $8 * 6, %rax
        require be, 6
        exit 0
        define_idt
        .bss
        .balign 16
task_state:
        .skip 0x68
        .balign 16
        .skip 4096
good_stack_end:
