// What may be remembered of a translation and what must be forgotten: INVLPG, CR3, global pages, CR4.PGE,
// large pages, accessed and dirty bits.
// expect: exit 1
#include "guests/edge/edge.inc"
#define WINDOW 0x8000000000
        .globl GuestMain
GuestMain:
        movl $pdpt + 7, %eax
        movq %rax, boot_pml4 + 8
        movl $pd + 7, %eax
        movq %rax, pdpt
        movl $pt + 7, %eax
        movq %rax, pd
        movq $1, page0
        movq $2, page1
        movabsq $WINDOW, %rsi
        movq %cr4, %r8
        movq %cr3, %r9
        movl $page0 + 7, %ebx
        movl $page1 + 7, %ecx

        // A new entry after INVLPG.
        movq %rbx, pt
        cmpq $1, (%rsi)
        require e, 1
        movq %rcx, pt
        invlpg (%rsi)
        cmpq $2, (%rsi)
        require e, 2
        // INVLPG of any byte of the page.
        movq %rbx, pt
        invlpg 4095(%rsi)
        cmpq $1, (%rsi)
        require e, 3
        // A new entry after CR3.
        movq %rcx, pt
        movq %r9, %cr3
        cmpq $2, (%rsi)
        require e, 4
        // A global page is forgotten by INVLPG and by a change of CR4.PGE.
        orq $0x80, %r8
        movq %r8, %cr4
        orl $0x100, %ebx
        movq %rbx, pt
        invlpg (%rsi)
        cmpq $1, (%rsi)
        require e, 5
        movq %rcx, pt
        invlpg (%rsi)
        cmpq $2, (%rsi)
        require e, 6
        orl $0x100, %ecx
        movq %rcx, pt
        invlpg (%rsi)
        cmpq $2, (%rsi)
        require e, 7
        movq %rbx, pt
        xorq $0x80, %r8
        movq %r8, %cr4
        cmpq $1, (%rsi)
        require e, 8
        // The upper levels: a new table, then a 2 MiB page instead of the table.
        movq %rcx, pt2
        movl $pt2 + 7, %eax
        movq %rax, pd
        invlpg (%rsi)
        cmpq $2, (%rsi)
        require e, 9
        movq $0x87, pd                  // 2 MiB at 0
        invlpg (%rsi)
        movl $page0, %edx
        addq %rsi, %rdx
        cmpq $1, (%rdx)                 // page0 lies below 2 MiB
        require e, 10
        movl $pt + 7, %eax
        movq %rax, pd
        movq %rbx, pt
        invlpg (%rdx)                   // any byte of the 2 MiB page
        invlpg (%rsi)
        cmpq $1, (%rsi)
        require e, 11
        // Accessed and dirty come back after they were cleared.
        andl $~0x60, pt
        invlpg (%rsi)
        movq (%rsi), %rax
        movl pt, %eax
        andl $0x60, %eax
        cmpl $0x20, %eax
        require e, 12
        movq $3, (%rsi)                 // the page is known; its D is not set yet
        movl pt, %eax
        andl $0x60, %eax
        cmpl $0x60, %eax
        require e, 13
        // A page that was not present needs no INVLPG to become so.
        movq $0, pt + 8
        movl $page1 + 7, %eax
        movq %rax, pt + 8
        cmpq $2, 4096(%rsi)
        require e, 14
        // Rights may be raised without INVLPG: no fault comes of a remembered refusal.
        movl $page1 + 5, %eax
        movq %rax, pt + 8
        invlpg 4096(%rsi)
        movq 4096(%rsi), %rax
        orl $2, pt + 8
        movq $9, 4096(%rsi)             // no IDT: a fault would be a shutdown
        cmpq $9, page1
        require e, 15
        exit 0
        .bss
        .balign 4096
pdpt:   .skip 4096
pd:     .skip 4096
pt:     .skip 4096
pt2:    .skip 4096
page0:  .skip 4096
page1:  .skip 4096
