// Shadow stacks: what fills and checks them, which pages they lie in, and the tokens by which they are switched.
// expect: exit 1
#include "guests/edge/edge.inc"
#define WINDOW 0x8000000000             // stack_page, ist_page, user_page as shadow stacks
#define TOP (WINDOW + 0xff8)            // the token of stack_page
#define IST_TOP (WINDOW + 0x1ff8)
#define USER_TOP (WINDOW + 0x3000)

        // Goes on behind `instruction`, which must fault so.
        .macro faults instruction:vararg
        leaq 5f(%rip), %r13
        movl $-1, %r14d
        \instruction
5:
        .endm
        .macro require_fault vector, code, value
        cmpl $\vector, %r14d
        require e, \value
        cmpl $\code, %r15d
        require e, \value
        .endm
        .macro require_ssp place, value
        rdsspq %rax
        movabsq $\place, %rcx
        cmpq %rcx, %rax
        require e, \value
        .endm
        .macro write_msr index, place
        movl $\index, %ecx
        movl $(\place & 0xffffffff), %eax
        movl $(\place >> 32), %edx
        wrmsr
        .endm

        .globl GuestMain
GuestMain:
        movl $7, %eax
        xorl %ecx, %ecx
        cpuid
        testl $(1 << 7), %ecx
        require nz, 1
        movl $pdpt + 7, %eax
        movq %rax, boot_pml4 + 8
        movl $pd + 7, %eax
        movq %rax, pdpt
        movl $pt + 7, %eax
        movq %rax, pd
        movl $stack_page + 0x61, %eax   // P, A, D and not W
        movq %rax, pt
        movl $ist_page + 0x61, %eax
        movq %rax, pt + 8
        movl $user_page + 0x65, %eax
        movq %rax, pt + 16
        movabsq $TOP, %rax
        movq %rax, stack_page + 0xff8
        movabsq $IST_TOP, %rax
        movq %rax, ist_page + 0xff8
        movq %rax, ssp_table + 8

        movq $ring0_stack_end, task_state + 4
        movq $ist_stack_end, task_state + 0x24
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
        set_gate 6, undefined_opcode
        set_gate 13, general_protection
        set_gate 14, page_fault
        set_gate 21, control_protection
        set_gate 0x30, on_ist
        movb $1, idt + 16 * 0x30 + 4
        set_gate 0x80, from_user, 3
        lidt idt_pointer

        // Without CR4.CET: no instructions, and the MSRs all the same.
        faults incsspq %rax
        cmpl $6, %r14d
        require e, 2
        movl $0x123, %eax
        rdsspq %rax
        cmpl $0x123, %eax
        require e, 2
        write_msr 0x6a4, TOP
        write_msr 0x6a8, 0
        movl $ssp_table, %eax
        wrmsr
        faults write_msr 0x6a4, 1
        require_fault 13, 0, 3
        faults write_msr 0x6a2, 0x40
        require_fault 13, 0, 3
        movq %cr4, %rax
        orq $0x800000, %rax
        movq %rax, %cr4
        movq %cr0, %rax
        btrq $16, %rax
        faults movq %rax, %cr0          // WP stays while CET is on
        require_fault 13, 0, 4
        write_msr 0x6a2, 3              // shadow stack and WRSS
        setssbsy
        movb $1, enabled
        require_ssp TOP, 5
        testb $1, stack_page + 0xff8    // busy
        require nz, 5

        // CALL and RET; a return address that was changed.
        call plain
        require_ssp TOP, 6
        call changed
after_changed:
        addq $8, %rsp
        require_fault 21, 1, 7
        movl $1, %eax
        incsspq %rax
        require_ssp TOP, 8
        call next                       // of the instruction behind it: leaves no trace
next:   popq %rax
        require_ssp TOP, 9
        lcall *far_pointer
        require_ssp TOP, 10
        faults lcall *far_changed_pointer
        require_fault 21, 2, 11
        movl $3, %eax                   // its frame, and the alignment of the stack
        incsspq %rax
        addq $8, %rsp
        require_ssp TOP, 11

        // Pages.
        movabsq $WINDOW, %rsi
        movq (%rsi), %rax
        faults movq %rax, (%rsi)
        require_fault 14, 3, 12
        movl $stack_page, %edi
        faults wrssq %rax, (%rdi)       // no shadow stack
        require_fault 14, 0x43, 13
        faults wrssq %rax, 0x2000(%rsi) // a user's
        require_fault 14, 0x43, 14
        movl $0x5678, %eax
        wrssq %rax, (%rsi)
        cmpq $0x5678, stack_page
        require e, 15
        wrussq %rax, 0x2000(%rsi)
        cmpq $0x5678, user_page
        require e, 16
        faults wrussq %rax, (%rsi)
        require_fault 14, 0x47, 17
        faults wrussq %rax, 0x3000(%rsi)
        require_fault 14, 0x46, 18
        // A page that becomes an ordinary one, and a shadow stack again.
        orb $2, pt + 8
        invlpg 0x1000(%rsi)
        movq %rax, 0x1000(%rsi)
        faults wrssq %rax, 0x1000(%rsi)
        require_fault 14, 0x43, 19
        andb $~2, pt + 8
        invlpg 0x1000(%rsi)
        wrssq %rax, 0x1000(%rsi)
        faults movq %rax, 0x1000(%rsi)
        require_fault 14, 3, 20

        // Tokens.
        faults rstorssp 0x800(%rsi)
        require_fault 21, 4, 21
        faults setssbsy                 // busy already
        require_fault 21, 5, 22
        int $0x30
        require_ssp TOP, 23
        cmpb $1, interrupted
        require e, 23
        testb $1, ist_page + 0xff8      // given back
        require z, 24
        movabsq $(WINDOW + 0x1808 + 1), %rax
        wrssq %rax, 0x1800(%rsi)
        rstorssp 0x1800(%rsi)
        require nc, 25
        require_ssp WINDOW + 0x1800, 25
        clc
        saveprevssp
        require_ssp WINDOW + 0x1808, 26
        rstorssp 0xff0(%rsi)
        require_ssp WINDOW + 0xff0, 27
        movl $1, %eax
        incsspq %rax
        require_ssp TOP, 28

        // To ring 3 and back.
        write_msr 0x6a0, 1
        write_msr 0x6a7, USER_TOP
        pushq $USER_DATA
        pushq $user_stack_end
        pushq $0x3002                   // IOPL 3: it may exit
        pushq $USER_CODE
        pushq $user
        iretq
user:   require_ssp USER_TOP, 29
        testb $1, stack_page + 0xff8
        require z, 30
        call plain
        call user_deep
user_deep_return:
        exit 62
user_deep:
        int $0x80
        exit 63

from_user:
        require_ssp TOP, 31
        testb $1, stack_page + 0xff8
        require nz, 32
        movl $0x6a7, %ecx
        rdmsr
        cmpl $((USER_TOP - 8) & 0xffffffff), %eax
        require e, 33
        cmpq $user_deep_return, user_page + 0xff8
        require e, 34
        exit 0

plain:  ret
changed:
        leaq after_changed(%rip), %r13
        incq (%rsp)
        ret

far_target:
        lretl
far_changed:
        incl (%rsp)
        lretl

on_ist: rdsspq %rax
        movabsq $(IST_TOP - 24), %rcx
        cmpq %rcx, %rax
        require e, 40
        testb $1, ist_page + 0xff8
        require nz, 41
        movb $1, interrupted
        iretq

undefined_opcode:
        pushq $0
        movl $6, %r14d
        jmp handled
general_protection:
        movl $13, %r14d
        jmp handled
page_fault:
        movl $14, %r14d
        jmp handled
control_protection:
        movl $21, %r14d
// Goes on at R13: on both stacks.
handled:
        popq %r15
        movq %r13, (%rsp)
        cmpb $0, enabled
        je 1f
        pushq %rax
        rdsspq %rax
        wrssq %r13, 8(%rax)
        popq %rax
1:      iretq

        define_idt
        .data
far_pointer:
        .long far_target
        .word KERNEL_CODE
far_changed_pointer:
        .long far_changed
        .word KERNEL_CODE
enabled: .byte 0
interrupted: .byte 0
        .bss
        .balign 4096
pdpt:   .skip 4096
pd:     .skip 4096
pt:     .skip 4096
stack_page: .skip 4096
ist_page: .skip 4096
user_page: .skip 4096
task_state: .skip 0x68
        .balign 16
ssp_table: .skip 64
        .skip 4096
ring0_stack_end:
        .skip 4096
ist_stack_end:
        .skip 4096
user_stack_end:
