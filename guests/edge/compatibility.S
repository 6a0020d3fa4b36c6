// 64-bit mode, compatibility mode and back: far transfers, what instructions mean there, an exception
// taken from there, and a call gate.
// expect: exit 1
#include "guests/edge/edge.inc"
        .globl GuestMain
GuestMain:
        set_gate 6, undefined_opcode
        lidt idt_pointer
        movabsq $0x1111111122222222, %rbx
        movabsq $0x3333333344444444, %r8
        ljmpl *to_32
back:   movl %cs, %eax
        cmpl $KERNEL_CODE, %eax
        require e, 1
        cmpl $0x22222224, %ebx          // two INCs of one byte each
        require e, 2
        movabsq $0x3333333344444444, %rax
        cmpq %rax, %r8
        require e, 3
        cmpl $1, %r12d                  // one #UD
        require e, 4
        // A call gate to 64-bit code, in place of the task state's descriptor.
        movl $gated, %eax
        movw %ax, gdt + TASK_STATE
        movw $KERNEL_CODE, gdt + TASK_STATE + 2
        movw $0x8c00, gdt + TASK_STATE + 4
        shrl $16, %eax
        movw %ax, gdt + TASK_STATE + 6
        movq $0, gdt + TASK_STATE + 8
        movq %rsp, %rbp
        lcalll *to_gate
behind_gate:
        cmpl $77, %eax
        require e, 5
        cmpq %rsp, %rbp
        require e, 6
        // Far return.
        pushq $KERNEL_CODE
        pushq $far_target
        lretq
        exit 7
far_target:
        exit 0
gated:  cmpq $behind_gate, (%rsp)
        require e, 8
        cmpq $KERNEL_CODE, 8(%rsp)
        require e, 9
        movl $77, %eax
        lretq
undefined_opcode:
        incl %r12d
        cmpq $KERNEL_CODE32, 8(%rsp)
        require e, 10
        addq $2, (%rsp)
        iretq

        .code32
in_32:  .byte 0x43, 0x43                // INC EBX twice; REX prefixes in 64-bit mode
        ud2
        pushl $5
        popl %eax
        cmpl $5, %eax
        jne wrong
        // 32-bit addresses wrap: FFFFF000h + 101000h is 101000h - 1000h = 100000h.
        movl $0x101000, %ecx
        cmpl $0x1badb002, 0xfffff000(%ecx)
        jne wrong
        ljmp $KERNEL_CODE, $back
wrong:  movl $30, %eax
        outl %eax, $0xf4
        hlt
        .code64

        .data
to_32:  .long in_32
        .word KERNEL_CODE32
to_gate:
        .long 0
        .word TASK_STATE
        .text
        define_idt
