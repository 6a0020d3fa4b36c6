// Four processors that change the same page tables at once, each its own entries of them: what a processor
// reads and writes behind its own INVLPG is where its new entry says, A and D are where they belong, and
// nobody is led to a page that was never his. Exit value: 0, or the number of the check that failed.
// cpus: 4
// expect: exit 1
#include "guests/edge/edge.inc"
#include "guests/edge/smp.inc"
#define CPUS 4
#define ROUNDS 3000
#define WINDOW 0x8000000000
#define PD_SPAN 0x200000

        // reg = &array[id * 2 + (round >> shift & 1)], an array of pages. Clobbers RAX.
        .macro own_page reg, array, shift
        movl %r12d, %eax
        shrl $\shift, %eax
        andl $1, %eax
        leal (%rax, %rbx, 2), %eax
        shll $12, %eax
        leaq \array(%rax), \reg
        .endm

        .globl GuestMain
GuestMain:
        movl $pdpt + 7, %eax
        movq %rax, boot_pml4 + 8
        movl $pd + 7, %eax
        movq %rax, pdpt
        movl $pt + 7, %eax
        movq %rax, pd
        movl $aliases + 7, %eax         // behind the processors' own 2 MiB
        movq %rax, pd + 8 * (CPUS + 1)
        xorl %ecx, %ecx                 // entry i belongs to processor i mod 4
1:      movl %ecx, %eax
        andl $CPUS - 1, %eax
        shll $13, %eax
        leaq frames + 7(%rax), %rdx
        movq %rdx, pt(, %rcx, 8)
        incl %ecx
        cmpl $512, %ecx
        jb 1b
        xorl %ecx, %ecx
1:      movl %ecx, %edx                 // frame and constant i belong to processor i / 2
        shll $12, %edx
        movl %ecx, %eax
        shrl $1, %eax
        movq %rax, frames(%rdx)
        movq %rcx, constants(%rdx)
        leaq constants + 7(%rdx), %rax
        movq %rax, own_pts(%rdx)        // entry 0 of own_pts[i] leads to constants[i]
        incl %ecx
        cmpl $2 * CPUS, %ecx
        jb 1b
        movl $counter + 7, %eax
        movq %rax, aliases
        movq %rax, aliases + 8
        movq %rax, aliases + 16
        movq %rax, aliases + 24
        start_other

other:
        movl $1, %ebx
        lock xaddl %ebx, next_id        // RBX: which processor this is
        movabsq $WINDOW, %r13
        xorl %r12d, %r12d               // R12: the round
        lock incl met
1:      pause
        cmpl $CPUS, met
        jb 1b

round:
        // An entry of the shared table: R14 its index, R15 its page, RBP the frame.
        leal (%rbx, %r12, CPUS), %r14d
        andl $511, %r14d
        movq %r14, %r15
        shlq $12, %r15
        addq %r13, %r15
        own_page %rbp, frames, 0
        leaq 7(%rbp), %rax
        movq %rax, pt(, %r14, 8)
        invlpg (%r15)
        movl %r12d, %eax
        shll $8, %eax
        orl %ebx, %eax
        movq %rax, (%r15)
        cmpq %rax, (%rbp)
        require e, 1
        movl pt(, %r14, 8), %eax
        andl $0x60, %eax
        cmpl $0x60, %eax
        require e, 2

        // The neighbour's entry leads to the neighbour's frames, whenever it is looked at.
        leal 1(%r14), %ecx
        andl $511, %ecx
        movl %ecx, %edx
        shlq $12, %rcx
        movq (%r13, %rcx), %rax
        andl $0xff, %eax
        andl $CPUS - 1, %edx
        cmpl %edx, %eax
        require e, 3

        // An entry of the directory: another table for the processor's own 2 MiB.
        testl $15, %r12d
        jnz 2f
        own_page %rbp, own_pts, 4
        leaq 7(%rbp), %rax
        movq %rax, pd + 8(, %rbx, 8)
        movq %rbx, %rdx
        incq %rdx
        shlq $21, %rdx
        addq %r13, %rdx
        invlpg (%rdx)
        movl %r12d, %eax
        shrl $4, %eax
        andl $1, %eax
        leal (%rax, %rbx, 2), %eax
        cmpq %rax, (%rdx)
        require e, 4
2:
        // One page by an address of each processor's; D of the entry is cleared and comes back.
        movq %rbx, %rdx
        shlq $12, %rdx
        addq %r13, %rdx
        addq $(CPUS + 1) * PD_SPAN, %rdx
        lock andl $~0x60, aliases(, %rbx, 8)
        invlpg (%rdx)
        lock incq (%rdx)
        movl aliases(, %rbx, 8), %eax
        andl $0x60, %eax
        cmpl $0x60, %eax
        require e, 5

        testl $63, %r12d
        jnz 2f
        movq %cr3, %rax
        movq %rax, %cr3
2:      incl %r12d
        cmpl $ROUNDS, %r12d
        jb round

        lock incl done
        testl %ebx, %ebx
        jnz 2f
1:      pause
        cmpl $CPUS, done
        jb 1b
        cmpq $CPUS * ROUNDS, counter
        require e, 6
        exit 0
2:      cli
        hlt
        jmp 2b
        define_smp

        .bss
        .balign 64
next_id: .long 0
met:    .long 0
done:   .long 0
        .balign 4096
pdpt:   .skip 4096
pd:     .skip 4096
pt:     .skip 4096
aliases: .skip 4096
counter: .skip 4096
frames: .skip 4096 * 2 * CPUS
constants: .skip 4096 * 2 * CPUS
own_pts: .skip 4096 * 2 * CPUS
