// Indirect branch tracking: what must be ENDBR64, what need not be, and who keeps the tracker meanwhile. A processor
// without it refuses to turn it on.
// expect: exit 1
#include "guests/edge/edge.inc"
#define TRACKER 0x800
        .macro write_cet value
        movl $0x6a2, %ecx
        movl $\value, %eax
        xorl %edx, %edx
        wrmsr
        .endm
        .macro jump_to place, prefix
        leaq \place(%rip), %rbx
        leaq 5f(%rip), %r13
        movl $-1, %r14d
        \prefix jmp *%rbx
5:
        .endm
        .macro require_fault vector, code, value
        cmpl $\vector, %r14d
        require e, \value
        cmpl $\code, %r15d
        require e, \value
        .endm

        .globl GuestMain
GuestMain:
        set_gate 3, breakpoint
        set_gate 13, general_protection
        set_gate 21, control_protection
        lidt idt_pointer
        movl $7, %eax
        xorl %ecx, %ecx
        cpuid
        testl $(1 << 20), %edx
        jnz tracked
        leaq 5f(%rip), %r13
        movl $-1, %r14d
        write_cet 4
5:      require_fault 13, 0, 1
        exit 0

tracked:
        movq %cr4, %rax
        orq $0x800000, %rax
        movq %rax, %cr4
        leaq 5f(%rip), %r13
        write_cet 0xc00                 // never suppressed and waiting
5:      require_fault 13, 0, 2
        write_cet 0x14                  // ENDBR_EN, NO_TRACK_EN
        jump_to good
        cmpl $1, %r14d
        require e, 3
        leaq called(%rip), %rbx
        call *%rbx
        jump_to bad
        require_fault 21, 3, 4
        cmpq $bad, faulted              // the target is what faults
        require e, 5
        testl $TRACKER, cet_seen        // the handler's ENDBR64 was the one that the tracker waited for
        require z, 6
        jump_to narrow                  // ENDBR32 is none in 64-bit code
        require_fault 21, 3, 7
        jump_to bad, notrack
        cmpl $2, %r14d
        require e, 8
        // INT3 comes first.
        jump_to broken
        cmpl $1, %r14d
        require e, 9
        cmpb $1, broke
        require e, 10
        write_cet 4
        jump_to bad, notrack            // the prefix says nothing without NO_TRACK_EN
        require_fault 21, 3, 11
        // Legacy code: by the bitmap the page of `bad` needs none, and tracking is suppressed behind it.
        movl $legacy_code, %eax
        shrl $15, %eax
        movl $legacy_code, %ecx
        shrl $12, %ecx
        andl $7, %ecx
        movl $1, %edx
        shll %cl, %edx
        movb %dl, bitmap(%rax)
        movl $0x6a2, %ecx
        movl $bitmap + 0xc, %eax
        xorl %edx, %edx
        wrmsr
        jump_to legacy_code
        cmpl $3, %r14d
        require e, 12
        movl $0x6a2, %ecx
        rdmsr
        testl $0x400, %eax
        require nz, 13
        jump_to bad                     // suppressed
        cmpl $2, %r14d
        require e, 14
        endbr64
        jump_to bad
        require_fault 21, 3, 15
        exit 0

good:   endbr64
        movl $1, %r14d
        notrack jmp *%r13
bad:    movl $2, %r14d
        notrack jmp *%r13
narrow: endbr32
        movl $2, %r14d
        notrack jmp *%r13
called: endbr64
        ret
broken: int3
        endbr64
        movl $1, %r14d
        notrack jmp *%r13

breakpoint:
        endbr64
        movb $1, broke
        iretq
general_protection:
        movl $13, %r14d
        jmp handled
control_protection:
        endbr64
        movl $21, %r14d
handled:
        popq %r15
        movq (%rsp), %rax
        movq %rax, faulted
        movq %r13, (%rsp)
        movl $0x6a2, %ecx
        rdmsr
        movl %eax, cet_seen
        iretq
        .balign 4096
legacy_code:
        movl $3, %r14d
        notrack jmp *%r13
        .balign 4096
        define_idt
        .data
faulted: .quad 0
cet_seen: .long 0
broke:  .byte 0
        .bss
        .balign 4096
bitmap: .skip 0x2000
