// Ring 3 handles #AC itself, on a stack that is not aligned, with alignment checking on: delivering the
// exception raises it again, for ever and before any instruction.
// expect: runs
#include "guests/edge/edge.inc"
        .section .multiboot, "a"
        .long 0x1badb002, 0, -0x1badb002
        .text
        .code32
        .globl _start
_start: movl $stack_end, %esp
        lgdt gdt_pointer
        ljmp $8, $1f
1:      movl $0x10, %eax
        movl %eax, %ss
        movl $handler, %eax
        movw %ax, idt + 8 * 17
        movw $0x1b, idt + 8 * 17 + 2    // the code segment of ring 3
        movw $0xee00, idt + 8 * 17 + 4
        shrl $16, %eax
        movw %ax, idt + 8 * 17 + 6
        lidt idt_pointer
        movl %cr0, %eax
        orl $0x40000, %eax              // CR0.AM
        movl %eax, %cr0
        pushl $0x23
        pushl $stack_end - 1
        pushl $0x40002                  // EFLAGS.AC
        pushl $0x1b
        pushl $user
        iretl
user:   pushl %eax
handler:
        jmp handler
        .data
        .balign 16
gdt:    .quad 0
        .quad 0x00cf9b000000ffff, 0x00cf93000000ffff
        .quad 0x00cffb000000ffff, 0x00cff3000000ffff
gdt_end:
gdt_pointer:
        .word gdt_end - gdt - 1
        .long gdt
idt_pointer:
        .word 8 * 256 - 1
        .long idt
        .bss
        .balign 16
idt:    .skip 8 * 256
        .skip 4096
stack_end:
