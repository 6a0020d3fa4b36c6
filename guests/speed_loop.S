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
