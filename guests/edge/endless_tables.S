// Two processors, one from either end, read through 24576 page tables that each map nothing but
// themselves: many times more than may be shadowed at once. For each they also read anywhere in
// 1 TiB of physical addresses. Every table must be found as it is.
// cpus: 2
// expect: exit 1
#include "guests/edge/edge.inc"
#include "guests/edge/smp.inc"
#define TABLES 24576
#define FIRST 0x1000000

// Reads the entry of table RBX through itself, and somewhere by way of the large pages of the table
// at R8, which is number R9 of the PML4. R10 is random.
        .macro read_table
        movq %rbx, %rdi
        shlq $21, %rdi
        btsq $39, %rdi
        movq (%rdi), %rax
        andl $~0x60, %eax               // A and D
        movl %ebx, %ecx
        shll $12, %ecx
        addl $(FIRST + 7), %ecx
        cmpq %rcx, %rax
        require e, 1

        imull $1664525, %r10d, %r10d
        addl $1013904223, %r10d
        movl %r10d, %ecx
        shrl $16, %ecx
        andl $0x3ff, %ecx
        shlq $30, %rcx
        orl $0x87, %ecx
        movl %ebx, %edx
        andl $511, %edx
        movq %rcx, (%r8,%rdx,8)
        movq %r9, %rdi
        shlq $9, %rdi
        orq %rdx, %rdi
        shlq $30, %rdi
        movl %r10d, %ecx
        andl $0x3fe00ff8, %ecx
        orq %rcx, %rdi
        invlpg (%rdi)
        movq (%rdi), %rcx
        .endm

        .globl GuestMain
GuestMain:
        xorl %ebx, %ebx
1:      movl %ebx, %ecx
        shll $12, %ecx
        addl $FIRST, %ecx
        leal 7(%rcx), %edx
        movq %rdx, (%rcx)
        movq %rdx, directories(,%rbx,8)
        incl %ebx
        cmpl $TABLES, %ebx
        jb 1b
        movl $directories + 7, %edx
        xorl %ecx, %ecx
1:      movq %rdx, upper(,%rcx,8)
        addl $0x1000, %edx
        incl %ecx
        cmpl $(TABLES / 512), %ecx
        jb 1b
        movl $upper + 7, %edx
        movq %rdx, boot_pml4 + 8
        movl $large0 + 7, %edx
        movq %rdx, boot_pml4 + 16
        movl $large1 + 7, %edx
        movq %rdx, boot_pml4 + 24
        start_other
        movl $large0, %r8d
        movl $2, %r9d
        movl $1, %r10d
        xorl %ebx, %ebx
1:      read_table
        incl %ebx
        cmpl $TABLES, %ebx
        jb 1b
1:      pause
        cmpl $0, done
        je 1b
        exit 0

other:
        movl $large1, %r8d
        movl $3, %r9d
        movl $77, %r10d
        movl $TABLES, %ebx
1:      decl %ebx
        read_table
        testl %ebx, %ebx
        jnz 1b
        movl $1, done
1:      hlt
        jmp 1b

        define_smp
        .bss
        .balign 4096
directories: .skip 8 * TABLES
upper:  .skip 4096
large0: .skip 4096
large1: .skip 4096
done:   .skip 4
