// A task in virtual-8086 mode with virtual interrupts (CR4.VME): its CLI, STI, PUSHF and IRET work on VIF,
// one of its INTs goes to its own handler, the other to the monitor.
// expect: exit 1
#include "guests/edge/edge.inc"
#define LOW 0x8000                      // where the 16-bit code goes: 0800:0000
#define VIF (1 << 19)
        .section .multiboot, "a"
        .long 0x1badb002, 0, -0x1badb002
        .text
        .code32
        .globl _start
_start: movl $monitor_stack, %esp
        movl $low_code, %esi
        movl $LOW, %edi
        movl $low_code_end - low_code, %ecx
        cld
        rep movsb
        lgdt gdt_pointer
        ljmp $0x08, $1f
1:      movl $0x10, %eax
        movl %eax, %ds
        movl %eax, %es
        movl %eax, %ss
        movl $monitor_stack, %esp
        movl $monitor, %eax             // #GP
        movw %ax, idt + 8 * 13
        shrl $16, %eax
        movw %ax, idt + 8 * 13 + 6
        lidt idt_pointer
        movl $task_state, %eax
        movw %ax, gdt + 0x18 + 2
        shrl $16, %eax
        movb %al, gdt + 0x18 + 4
        movb %ah, gdt + 0x18 + 7
        movl $0x18, %eax
        ltr %ax
        movl %cr4, %eax
        orl $1, %eax                    // VME
        movl %eax, %cr4
        // The task's INT 42h: its own handler.
        movw $handler - low_code, 0x42 * 4
        movw $LOW >> 4, 0x42 * 4 + 2
        xorl %ebx, %ebx
        pushl $0                        // GS, FS, DS, ES
        pushl $0
        pushl $0
        pushl $0
        pushl $0x700                    // SS, ESP
        pushl $0x1000
        pushl $0x20202                  // VM, IF, IOPL 0
        pushl $LOW >> 4
        pushl $task - low_code
        iretl

monitor:
        testl $0x20000, 12(%esp)        // VM
        require nz, 20
        cmpw $failed - low_code, 4(%esp)
        require ne, 21
        cmpw $last - low_code, 4(%esp)
        require e, 22
        testl $VIF, 12(%esp)
        require nz, 23
        testl $0x200, 12(%esp)          // IF: nothing has touched it
        require nz, 24
        cmpl $0, (%esp)
        require e, 25
        cmpl $42, %ebx
        require e, 26
        exit 0

        .code16
low_code:
task:   sti
        pushfw
        popw %ax
        testw $0x200, %ax               // VIF where IF stands
        jz failed
        andw $0x3000, %ax
        cmpw $0x3000, %ax               // as if IOPL were 3
        jne failed
        cli
        pushfw
        popw %ax
        testw $0x200, %ax
        jnz failed
        movw $21, %bx
        int $0x42
        cmpw $42, %bx
        jne failed
        pushw $0x202
        popfw
last:   int $0x43                       // by the bitmap the monitor's, which IOPL 0 makes a fault
failed: hlt
handler:
        addw %bx, %bx
        iretw
low_code_end:

        .data
        .balign 8
gdt:    .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff, 0x00008900000000a7
gdt_pointer:
        .word 0x1f
        .long gdt
        .balign 8
idt:    .fill 13, 8, 0
        .long 0x00080000, 0x00008e00
        .fill 18, 8, 0
idt_pointer:
        .word 8 * 32 - 1
        .long idt
        .balign 8
task_state:
        .long 0, monitor_stack, 0x10
        .skip 0x66 - 12
        .word 0x88                      // the I/O bitmap, which nobody asks for; below it, that of INTs
        .fill 8, 1, 0
        .byte 1 << 3                    // INT 43h
        .fill 23, 1, 0
        .fill 0x20, 1, 0xff
        .bss
        .balign 16
        .skip 4096
monitor_stack:
