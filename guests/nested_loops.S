// Loops that hypervisors in miniature run themselves and have their guests run.

        .text
        .code64

// RDI iterations of six instructions over 1 MiB at RSI.
        .globl nested_loop
nested_loop:
        xor %eax, %eax
        xor %edx, %edx
1:      add (%rsi,%rdx), %rax
        mov %rax, (%rsi,%rdx)
        add $64, %rdx
        and $0xfffff, %edx
        dec %rdi
        jnz 1b
        ret

// Reads from RDI pages of 4 KiB, the first at RSI.
        .globl nested_touch
nested_touch:
1:      mov (%rsi), %rax
        add $4096, %rsi
        dec %rdi
        jnz 1b
        ret

        .section .note.GNU-stack, "", @progbits
