// The local APIC's page is moved over memory, to nowhere and onto the page tables, and back.
// expect: exit 1
#include "guests/edge/edge.inc"
        .globl GuestMain
GuestMain:
        set_gate 13, next
        lidt idt_pointer
        leaq bases, %rbx
again:  movl (%rbx), %eax
        movl 4(%rbx), %edx
        addq $8, %rbx
        movl $0x1b, %ecx                // IA32_APIC_BASE
        movq %rsp, %rbp
        wrmsr
        movl $0xfee00020, %esi
        movl (%rsi), %eax
        movl %eax, (%rsi)
        movl page, %eax
        movl %eax, page
next:   movq %rbp, %rsp
        cmpq $bases_end, %rbx
        jb again
        movl $0xfee00900, %eax
        xorl %edx, %edx
        movl $0x1b, %ecx
        wrmsr
        exit 0
        define_idt
        .balign 8
bases:  .quad 0x900 + page, 0x900 + 0x100000, 0x900 + boot_pml4, 0x900 + 0xe0000000
        .quad 0x3ffffffff900, 0xfffffffffffff900, 0x800, 0, 0xd00
bases_end:
        .bss
        .balign 4096
page:   .skip 4096
