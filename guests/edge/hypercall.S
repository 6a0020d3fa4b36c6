// Calls to the hypervisor: both instructions on both vendors' processors, in 64-bit code and outside
// it; what is no call is answered so, and CPUID tells which are.
// expect: exit 1
#include "guests/edge/edge.inc"
#define SEND_IPI 10
#define UNKNOWN -38
#define INVALID -22
#define VECTOR 0x41
        .globl GuestMain
GuestMain:
        set_gate 6, undefined_opcode
        set_gate VECTOR, interrupt
        lidt idt_pointer
        movl $0x40000000, %eax
        cpuid
        cmpl $0x40000001, %eax
        require e, 1
        movl $0x40000001, %eax
        cpuid
        cmpl $1 << SEND_IPI, %eax
        require e, 2

        xorl %r14d, %r14d               // calls that were undefined
        movq $0x123456789, %rax
        vmcall
        cmpq $UNKNOWN, %rax
        require e, 3
        movq $0x123456789, %rax
        vmmcall
        cmpq $UNKNOWN, %rax
        require e, 4

        // An interrupt for this processor.
        movb $0xff, %al
        outb %al, $0x21
        outb %al, $0xa1
        movl $0xfee00000, %esi
        movl $0x1ff, 0xf0(%rsi)
        movl $1, %ebx
        xorl %ecx, %ecx
        xorl %edx, %edx
        movl $VECTOR, %esi
        movl $SEND_IPI, %eax
        vmcall
        cmpq $1, %rax
        require e, 5
        sti
        nop
        cli
        cmpl $1, %r15d
        require e, 6
        movl $SEND_IPI, %eax
        movl $0x4500, %esi              // INIT
        vmcall
        cmpq $INVALID, %rax
        require e, 7

        // 32-bit code has half of each register.
        ljmp *to_code32
        .code32
code32: movl $-1, %eax
        vmcall
        ljmp $KERNEL_CODE, $code64
        .code64
code64: movl %eax, %eax
        cmpl $UNKNOWN, %eax
        require e, 8

        .byte 0xf0                      // LOCK
        vmcall
        cmpl $1, %r14d
        require e, 9
        exit 0

interrupt:
        incl %r15d
        movl $0xfee00000, %edi
        movl $0, 0xb0(%rdi)
        iretq

// Skips the locked VMCALL.
undefined_opcode:
        incl %r14d
        addq $4, (%rsp)
        iretq

        .data
to_code32:
        .long code32
        .word KERNEL_CODE32
        define_idt
