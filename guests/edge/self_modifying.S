// Code that changes itself: the next instruction, an instruction on another page, one that spans two
// pages, and code changed through a second mapping. Each change must be seen at once.
// expect: exit 1
#include "guests/edge/edge.inc"
#define ALIAS 0x8000000000              // second entry of the PML4: the same tables, so the same memory
        .globl GuestMain
GuestMain:
        movq boot_pml4, %rax
        movq %rax, boot_pml4 + 8
        movq %cr3, %rax
        movq %rax, %cr3
        xorl %ebp, %ebp
        movl $1000, %ebx
again:
        // The next instruction.
        incl %ebp
        movl %ebp, here + 1
here:   movl $0, %eax
        cmpl %ebp, %eax
        require e, 1
        // On another page, called before and after.
        movl %ebp, far_code + 1
        call far_code
        cmpl %ebp, %eax
        require e, 2
        // Its immediate lies on two pages; a change of each half counts.
        movb $0x11, spanning + 1
        movb $0x22, spanning + 4
        call spanning
        cmpl $0x22000011, %eax
        require e, 3
        movb $0x33, spanning + 4
        call spanning
        cmpl $0x33000011, %eax
        require e, 4
        // Through the alias.
        movabsq $ALIAS + far_code + 1, %rdi
        notl (%rdi)
        call far_code
        notl %eax
        cmpl %ebp, %eax
        require e, 5
        // By a string instruction.
        movl $five, %esi
        movl $far_code, %edi
        movl $6, %ecx
        rep movsb
        call far_code
        cmpl $5, %eax
        require e, 6
        decl %ebx
        jnz again
        exit 0
five:   movl $5, %eax
        ret
        .data
        .balign 4096
far_code:
        movl $0, %eax
        ret
        .skip 4096 - 3 - 6
spanning:
        movl $0, %eax                   // 3 bytes before the boundary, 2 behind
        ret
