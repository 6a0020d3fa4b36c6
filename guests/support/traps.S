// Entries of the exceptions, and the code that probes. See traps.h.
#include "guests/support/selectors.h"

        .text
        .balign 16
        .globl trap_entries
trap_entries:
        .set vector, 0
        .rept 32
        .balign 16
        // These vectors push an error code. [intel/vol3] "Exception and Interrupt Reference"
        .if vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21
        .else
        pushq $0
        .endif
        pushq $vector
        jmp trap_common
        .set vector, vector + 1
        .endr

        .globl trap_call
trap_call:
        pushq $0
        pushq $0x80
        jmp trap_common

trap_common:
        cld
        pushq %rax
        pushq %rbx
        pushq %rcx
        pushq %rdx
        pushq %rsi
        pushq %rdi
        pushq %rbp
        pushq %r8
        pushq %r9
        pushq %r10
        pushq %r11
        pushq %r12
        pushq %r13
        pushq %r14
        pushq %r15
        movq %rsp, %rdi
        call HandleTrap
        popq %r15
        popq %r14
        popq %r13
        popq %r12
        popq %r11
        popq %r10
        popq %r9
        popq %r8
        popq %rbp
        popq %rdi
        popq %rsi
        popq %rdx
        popq %rcx
        popq %rbx
        popq %rax
        addq $16, %rsp
        iretq

// A probe keeps its stack in probe_stack; HandleTrap continues at probe_return with that stack.
        .macro begin_probe
        pushq %rbx
        pushq %rbp
        pushq %r12
        pushq %r13
        pushq %r14
        pushq %r15
        movq %rsp, probe_stack
        .endm

        .globl probe_read, probe_write, probe_fetch, probe_user, probe_return
probe_read:
        begin_probe
        movq (%rdi), %rax
        jmp probe_return
probe_write:
        begin_probe
        movq %rdi, (%rdi)
        jmp probe_return
probe_fetch:
        begin_probe
        call *%rdi
probe_return:
        movq $0, probe_stack
        popq %r15
        popq %r14
        popq %r13
        popq %r12
        popq %rbp
        popq %rbx
        ret

// probe_user(entry, stack end, argument)
probe_user:
        begin_probe
        pushq $USER_DATA
        pushq %rsi
        pushq $0x2
        pushq $USER_CODE
        pushq %rdi
        movq %rdx, %rdi
        iretq

        .section .rodata
        .globl user_read, user_write, user_fetch, user_probes_end
user_read:
        movq (%rdi), %rax
        int $0x80
user_write:
        movq %rdi, (%rdi)
        int $0x80
user_fetch:
        call *%rdi
        int $0x80
user_probes_end:

        .bss
        .balign 8
        .globl probe_stack
probe_stack:
        .skip 8
