// Ring 3 and back by every door: IRETQ, SYSCALL and SYSRET, an interrupt gate, and the faults of what
// ring 3 may not do.
// expect: exit 1
#include "guests/edge/edge.inc"
        .globl GuestMain
GuestMain:
        // TSS with RSP0; its descriptor is in the GDT of boot.S.
        movq $ring0_stack_end, task_state + 4
        movw $0x68, task_state + 0x66   // no I/O permission bitmap: ring 3 has no port
        movl $task_state, %eax
        movl %eax, %ecx
        shll $16, %eax
        orl $0x67, %eax
        movl %eax, gdt + TASK_STATE
        movl %ecx, %eax
        shrl $16, %eax
        andl $0xff, %eax
        andl $0xff000000, %ecx
        orl %ecx, %eax
        orl $0x8900, %eax
        movl %eax, gdt + TASK_STATE + 4
        movl $TASK_STATE, %eax
        ltr %ax
        set_gate 13, general_protection
        set_gate 6, undefined_opcode
        set_gate 0x80, called, 3
        set_gate 0x81, called           // ring 3 may not
        lidt idt_pointer
        // SYSCALL: CS 08 and SS 10; SYSRET: CS 28|3 and SS 20|3 from 18.
        movl $0xc0000080, %ecx
        rdmsr
        orl $1, %eax                    // EFER.SCE
        wrmsr
        movl $0xc0000081, %ecx          // STAR
        xorl %eax, %eax
        movl $(USER_CODE32 << 16) | KERNEL_CODE, %edx
        wrmsr
        movl $0xc0000082, %ecx          // LSTAR
        movl $system_call, %eax
        xorl %edx, %edx
        wrmsr
        movl $0xc0000084, %ecx          // SFMASK
        movl $0x401, %eax               // DF and CF
        wrmsr
        // IRETQ to ring 3.
        pushq $USER_DATA
        pushq $user_stack_end
        pushq $0x2
        pushq $USER_CODE
        pushq $user
        iretq

user:   movl %cs, %eax
        cmpl $USER_CODE, %eax
        require e, 1
        movl %ss, %eax
        cmpl $USER_DATA, %eax
        require e, 2
        // Interrupt gate.
        movl $1, %eax
        movq %rsp, %rbx
        int $0x80
        cmpl $2, %eax
        require e, 3
        cmpq %rsp, %rbx
        require e, 4
        // SYSCALL keeps RIP in RCX and RFLAGS in R11, and comes back with CF set as it was.
        stc
        movl $10, %eax
        syscall
after_system_call:
        require c, 5
        cmpl $11, %eax
        require e, 6
        movl %cs, %eax
        cmpl $USER_CODE, %eax
        require e, 7
        // What ring 3 may not do: general_protection skips R15 bytes and counts in R14.
        xorl %r14d, %r14d
        movl $1, %r15d
        hlt
        cli
        sti
        inb %dx, %al
        movl $2, %r15d
        wrmsr
        rdmsr
        int $0x81
        movl $3, %r15d
        movq %cr0, %rax
        movq %cr3, %rax
        movl $8, %r15d
        lidt idt_pointer
        cmpl $10, %r14d
        require e, 8
        // POPF in ring 3 leaves IF and IOPL alone, without a fault.
        pushq $0x3202
        popfq
        pushfq
        popq %rax
        testl $0x3200, %eax
        require z, 9
        cmpl $10, %r14d
        require e, 10
        // UD2 by its gate.
        movl $2, %r15d
        ud2
        cmpl $11, %r14d
        require e, 11
        // Done: ring 0 ends the machine.
        movl $99, %eax
        syscall

called: cmpl $99, %eax
        je done
        incl %eax
        testb $3, 8(%rsp)               // came from ring 3
        require nz, 20
        iretq

system_call:
        cmpl $99, %eax
        je done
        cmpq $after_system_call, %rcx
        require e, 21
        testl $1, %r11d
        require nz, 22
        pushfq
        testl $1, (%rsp)                // SFMASK cleared CF
        require z, 23
        addq $8, %rsp
        movl %cs, %eax
        cmpl $KERNEL_CODE, %eax
        require e, 24
        movl $11, %eax
        sysretq

done:   exit 0

general_protection:
        addq $8, %rsp                   // the error code
undefined_opcode:
        incl %r14d
        addq %r15, (%rsp)
        iretq

        define_idt
        .bss
        .balign 16
task_state:
        .skip 0x68
        .skip 4096
ring0_stack_end:
        .skip 4096
user_stack_end:
