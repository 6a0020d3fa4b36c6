// From protected mode to real mode and back: segment arithmetic, an interrupt through the vector table,
// wrapping at 64 KiB, 32-bit operands, and the limits that stay behind ("unreal mode").
// expect: exit 1
// console: real
// console: protected
#include "guests/edge/edge.inc"
#define LOW 0x8000                      // where the 16-bit code goes: 0800:0000
        .section .multiboot, "a"
        .long 0x1badb002, 0, -0x1badb002
        .text
        .code32
        .globl _start
_start: movl $0x7000, %esp
        movl $low_code, %esi
        movl $LOW, %edi
        movl $low_code_end - low_code, %ecx
        cld
        rep movsb
        lgdt gdt_pointer
        ljmp $0x18, $LOW                // 16-bit code segment, base 0

        .code16
low_code:
        movw $0x20, %ax                 // 16-bit data: limit 64 KiB
        movw %ax, %ds
        movw %ax, %ss
        movw $0x10, %ax                 // 4 GiB limit, which FS keeps in real mode
        movw %ax, %fs
        lidtl %cs:(LOW + real_idt - low_code)
        movl %cr0, %eax
        andl $~1, %eax
        movl %eax, %cr0
        ljmp $LOW >> 4, $real - low_code
real:   movw %cs, %ax
        cmpw $LOW >> 4, %ax
        jne bad
        movw %ax, %ds
        xorw %ax, %ax
        movw %ax, %ss
        movw %ax, %es
        movw $0x7000, %sp
        // INT 42h goes to real_handler, which doubles BX.
        movw $real_handler - low_code, %es:0x42 * 4
        movw $LOW >> 4, %es:0x42 * 4 + 2
        movw $21, %bx
        int $0x42
        cmpw $42, %bx
        jne bad
        cmpw $0x7000, %sp
        jne bad
        // 1000:0010 and 1001:0000 are one byte.
        movw $0x1000, %ax
        movw %ax, %es
        movb $0x5a, %es:0x10
        movw $0x1001, %ax
        movw %ax, %es
        cmpb $0x5a, %es:0
        jne bad
        // SI wraps inside its segment: LODSB at FFFF reads the last byte and leaves 0.
        movb $0x77, %es:0xffff
        movw $0xffff, %si
        cld
        lodsb %es:(%si)
        cmpb $0x77, %al
        jne bad
        testw %si, %si
        jne bad
        // FS still reaches memory above 1 MiB: the multiboot magic of this image.
        movl $0x100000, %ebx
        cmpl $0x1badb002, %fs:(%ebx)
        jne bad
        movw $real_text - low_code, %si
1:      lodsb
        movw $0x3f8, %dx
        outb %al, %dx
        cmpb $10, %al
        jne 1b
        movl %cr0, %eax
        orl $1, %eax
        movl %eax, %cr0
        ljmpl $0x08, $protected
bad:    movl $1, %eax
        outl %eax, $0xf4
        hlt
real_handler:
        shlw $1, %bx
        iretw
real_text:
        .ascii "real\n"
real_idt:
        .word 0x3ff
        .long 0
low_code_end:

        .code32
protected:
        movl $0x10, %eax
        movl %eax, %ds
        movl %eax, %ss
        movw $0x3f8, %dx
        movl $text, %esi
1:      lodsb
        testb %al, %al
        jz 2f
        outb %al, %dx
        jmp 1b
2:      exit 0
text:   .asciz "protected\n"
        .balign 8
gdt:    .quad 0
        .quad 0x00cf9b000000ffff        // 08: 32-bit code
        .quad 0x00cf93000000ffff        // 10: data, 4 GiB
        .quad 0x00009b000000ffff        // 18: 16-bit code
        .quad 0x000093000000ffff        // 20: data, 64 KiB
gdt_end:
gdt_pointer:
        .word gdt_end - gdt - 1
        .long gdt
