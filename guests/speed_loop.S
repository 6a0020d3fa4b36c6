// The loop of speed.cc, so that it is these six instructions on every compiler.
        .text
        .macro six_instructions
        xorl %eax, %eax
        xorl %edx, %edx
        .balign 32
1:      addq (%rdi,%rdx), %rax          // a load and an addition
        movq %rax, (%rdi,%rdx)
        addq $8, %rdx
        andl $0xffff8, %edx             // 1 MiB
        decq %rsi
        jnz 1b
        .endm

        // speed_call(buffer, iterations)
        .globl speed_call
speed_call:
        six_instructions
        ret

        // Ring 3, RDI = iterations; the buffer lies at the end of the stack.
        .globl speed_user_loop
speed_user_loop:
        movq %rdi, %rsi
        movq %rsp, %rdi
        six_instructions
        int $0x80

        // speed_exceptions(iterations): UD2 through a gate whose handler returns behind it.
        .globl speed_exceptions
speed_exceptions:
        subq $16, %rsp
        sidt (%rsp)
        movq 2(%rsp), %rax              // the IDT
        movl $undefined_opcode, %edx
        movw %dx, 6 * 16(%rax)
        shrl $16, %edx
        movw %dx, 6 * 16 + 6(%rax)
        addq $16, %rsp
1:      ud2
        decq %rdi
        jnz 1b
        ret
undefined_opcode:
        addq $2, (%rsp)
        iretq
