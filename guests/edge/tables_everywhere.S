// Page-table entries at all levels that are pseudo-random bits: each points somewhere, memory or not.
// Handles the faults, and touches 20000 addresses.
// expect: exit 1
#include "guests/edge/edge.inc"
        .globl GuestMain
GuestMain:
        set_gate 13, next
        set_gate 14, next
        set_gate 12, next
        lidt idt_pointer
        movl $table + 7, %eax
        movq %rax, boot_pml4 + 8        // 512 GiB onwards
        movl $20000, %ebx
        movl $0x12345679, %eax
        movq %rsp, %rbp
again:  movl %ebx, %r8d                 // an entry of each kind in turn
        andl $511, %r8d
        imull $1664525, %eax, %eax
        addl $1013904223, %eax
        movl %eax, %ecx
        imull $1664525, %eax, %eax
        addl $1013904223, %eax
        movl %eax, %edx
        andl $0x3f, %edx                // below 256 GiB
        shlq $32, %rdx
        orq %rcx, %rdx
        testl $0x1000, %eax
        jnz 1f
        andl $0x7ffffff, %edx           // in memory
1:      orl $3, %edx
        movq %rdx, table(, %r8, 8)
        movl %r8d, %edi
        shlq $30, %rdi
        movl %eax, %ecx
        andl $0x3fffffff, %ecx
        addq %rcx, %rdi
        btsq $39, %rdi
        invlpg (%rdi)
        movq (%rdi), %rcx
next:   movq %rbp, %rsp
        decl %ebx
        jnz again
        exit 0
        define_idt
        .bss
        .balign 4096
table:  .skip 4096
