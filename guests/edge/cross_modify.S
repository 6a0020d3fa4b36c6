// One processor writes the code that the other executes: after it has been told, and has executed a
// serialising instruction, the other must run the new code every time.
// [intel/vol3] "Handling Self- and Cross-Modifying Code"
// cpus: 2
// expect: exit 1
#include "guests/edge/edge.inc"
#include "guests/edge/smp.inc"
#define ROUNDS 300

        .globl GuestMain
GuestMain:
        start_other
        movl $1, %ebx
1:      movl %ebx, patched + 1          // the immediate operand
        movl %ebx, told
2:      pause
        cmpl %ebx, done
        jb 2b
        incl %ebx
        cmpl $ROUNDS, %ebx
        jbe 1b
        cmpl $0, stale
        require e, 1
        exit 0

other:
        xorl %edi, %edi
1:      call patched                    // so that it is decoded before it changes
        cmpl told, %edi
        je 1b
        movl told, %edi
        xorl %eax, %eax
        cpuid
        call patched
        cmpl %edi, %eax
        je 2f
        movl $1, stale
2:      movl %edi, done
        jmp 1b

        .balign 4096
patched:
        movl $0, %eax
        ret
        .balign 4096
        define_smp
        .bss
        .balign 64
told:   .long 0
        .balign 64
done:   .long 0
stale:  .long 0
