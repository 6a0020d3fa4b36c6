// A PML4 whose entries are the PML4 itself, a table that is its own page, and writes to the tables through
// themselves.
// expect: exit 1
#include "guests/edge/edge.inc"
        .globl GuestMain
GuestMain:
        movl $boot_pml4 + 7, %eax
        movq %rax, boot_pml4 + 8 * 511  // the last entry maps the tables
        movq %rax, boot_pml4 + 8 * 1
        movq $-4096, %rsi               // all four levels are the PML4
        cmpw $0x7, (%rsi)               // its first entry, with A by now
        movq boot_pml4, %rax
        cmpq %rax, (%rsi)
        require e, 1
        // Through it the entry of a page that is being used is taken away and given back.
        movq $0, 8 * 1(%rsi)
        movq %cr3, %rax
        movq %rax, %cr3
        cmpq $0, boot_pml4 + 8
        require e, 2
        // Every entry is the PML4: any address leads to it.
        movl $boot_pml4 + 0x67, %eax    // A and D are set already
        movl $256, %ecx
        leaq 8 * 2(%rsi), %rdi
        subl $2, %ecx
        rep stosq
        movabsq $0x010080402000, %rbx   // indices 2, 2, 2, 2
        cmpq %rax, 8 * 2(%rbx)
        require e, 3
        lock orq $0x200, 8 * 2(%rbx)    // a bit that the processor ignores
        btq $9, boot_pml4 + 8 * 2
        require c, 4
        exit 0
