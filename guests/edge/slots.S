// Two processors write and read for ever: RAM from 16 to 48 MiB, page by page in an order of their
// own, and 8 MiB at 4 GiB, where memory may come and go meanwhile.
// cpus: 2
// expect: runs
#include "guests/edge/edge.inc"
#include "guests/edge/smp.inc"

// Touches a page each of RAM and of what is at 4 GiB, chosen by the number in EAX.
        .macro touch_somewhere
        imull $1664525, %eax, %eax
        addl $1013904223, %eax
        movl %eax, %edx
        shrl $7, %edx
        movl %edx, %ecx
        andl $0x1fff000, %ecx           // below 32 MiB
        addl $0x1000000, %ecx
        movl %edx, %esi
        andl $0xff8, %esi
        testl $0x100000, %eax           // a page is as often read as written
        jz 2f
        incq (%rcx,%rsi)
        jmp 3f
2:      movq (%rcx,%rsi), %rdx
3:      movl %eax, %ecx
        andl $0x7ff000, %ecx            // below 8 MiB
        btsq $32, %rcx
        testl $0x80000000, %eax
        jz 2f
        movq %rax, (%rcx,%rsi)
        jmp 3f
2:      movq (%rcx,%rsi), %rdx
3:
        .endm

        .globl GuestMain
GuestMain:
        movl boot_pml4, %edi            // the directory of 1 GiB pieces
        andl $~0xfff, %edi
        movl $0x87, %ecx                // 4 GiB on itself, by pages of 2 MiB
        btsq $32, %rcx
        xorl %edx, %edx
1:      movq %rcx, directory(,%rdx,8)
        addq $0x200000, %rcx
        incl %edx
        cmpl $4, %edx
        jb 1b
        movl $directory + 7, %ecx
        movq %rcx, 32(%rdi)
        start_other
        print text
        movl $1, %eax
1:      touch_somewhere
        jmp 1b

other:
        movl $0x87654321, %eax
1:      touch_somewhere
        jmp 1b

        define_smp
        .data
text:   .asciz "ready\n"
        .bss
        .balign 4096
directory: .skip 4096
