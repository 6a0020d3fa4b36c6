// Calls code at 8 MiB that returns 1, reads the disk's first sector over it, and calls it again.
// If the quadword at 5 MiB, which is written from outside, is not 0, it reads to there instead.
//   exit value = what the second call returned, plus 16 times the request's status
// The disk is the first virtio device. [virtio] "Virtio Over MMIO", "Split Virtqueues"
#include "guests/edge/edge.inc"

#define DISK 0xd0000000
#define CODE 0x800000
#define TARGET 0x500000

        .macro set register, value
        movl $\value, \register(%rbx)
        .endm

        .globl GuestMain
GuestMain:
        movl $DISK, %ebx
        cmpl $0x74726976, (%rbx)
        je 1f
        exit 0xff                       // no such device
1:      movl $CODE, %edi
        movb $0xb8, (%rdi)              // mov $1, %eax
        movl $1, 1(%rdi)
        movb $0xc3, 5(%rdi)             // ret
        call *%rdi
        cmpl $1, %eax
        je 1f
        exit 0xfe
1:      movq TARGET, %rax
        testq %rax, %rax
        jz 1f
        movq %rax, descriptors + 16
1:      set 0x70, 3
        set 0x24, 1                     // version 1, and nothing else
        set 0x20, 1
        set 0x70, 11
        set 0x30, 0
        set 0x38, 8
        set 0x80, descriptors
        set 0x90, available
        set 0xa0, used
        set 0x44, 1
        set 0x70, 15
        movw $1, available + 2
        set 0x50, 0
1:      pause
        cmpw $1, used + 2
        jne 1b
        movl $CODE, %edi
        call *%rdi
        movzbl status, %ecx
        shll $4, %ecx
        addl %ecx, %eax
        outl %eax, $0xf4
1:      hlt
        jmp 1b

        .data
        .balign 16
descriptors:
        .quad header
        .long 16
        .word 1, 1                      // goes on at 1
        .quad CODE
        .long 512
        .word 3, 2                      // for the device to write, goes on at 2
        .quad status
        .long 1
        .word 2, 0
        .skip 5 * 16
available:
        .skip 64
used:   .skip 128
header: .long 0, 0                      // a read
        .quad 0                         // of sector 0
status: .byte 0xff
