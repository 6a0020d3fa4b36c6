// Memory ordering between two processors, each test run freely on both at once: store buffering
// with fences, message passing without, locked read-modify-writes aligned and across pages, and a
// spin lock. Exit value: 0, or the number of the test that failed.
// cpus: 2
// expect: exit 1
#include "guests/edge/edge.inc"
#include "guests/edge/smp.inc"
#define ROUNDS 20000

// Waits until both processors have come to meeting point `number` (from 1).
        .macro meet number
        lock incl met
5:      pause
        cmpl $(2 * \number), met
        jb 5b
        .endm

// x = 1; fence; result = y
        .macro store_buffer x, y, result
        xorl %ecx, %ecx
4:      movl $1, \x(,%rcx,4)
        mfence
        movl \y(,%rcx,4), %eax
        movl %eax, \result(,%rcx,4)
        incl %ecx
        cmpl $ROUNDS, %ecx
        jb 4b
        .endm

        .macro count
        movl $ROUNDS, %ecx
4:      lock incq aligned
        lock addl $1, crossing
        movl $1, %eax
        lock xaddq %rax, added
3:      movl $1, %eax                   // a spin lock around an increment that is not atomic
        xchgl %eax, spin
        testl %eax, %eax
        jz 2f
        pause
        jmp 3b
2:      incq guarded
        movl $0, spin
        decl %ecx
        jnz 4b
        .endm

        .globl GuestMain
GuestMain:
        start_other
        meet 1
        store_buffer x, y, result0
        meet 2
        xorl %ecx, %ecx
1:      movl result0(,%rcx,4), %eax
        orl result1(,%rcx,4), %eax
        require nz, 1
        incl %ecx
        cmpl $ROUNDS, %ecx
        jb 1b

        meet 3
        movl $1, %ecx                   // message passing: data, then flag
1:      movl %ecx, payload
        movl %ecx, flag
        incl %ecx
        cmpl $(10 * ROUNDS), %ecx
        jbe 1b
        meet 4
        cmpl $0, late
        require e, 2

        meet 5
        count
        meet 6
        cmpq $(2 * ROUNDS), aligned
        require e, 3
        cmpl $(2 * ROUNDS), crossing
        require e, 4
        cmpq $(2 * ROUNDS), added
        require e, 5
        cmpq $(2 * ROUNDS), guarded
        require e, 6
        exit 0

other:
        meet 1
        store_buffer y, x, result1
        meet 2
        meet 3
1:      movl flag, %eax
        movl payload, %edx
        cmpl %eax, %edx
        jae 2f
        movl $1, late
2:      cmpl $(10 * ROUNDS), %eax
        jb 1b
        meet 4
        meet 5
        count
        meet 6
1:      cli
        hlt
        jmp 1b
        define_smp

        .bss
        .balign 64
met:    .long 0
        .balign 64
x:      .skip 4 * ROUNDS
        .balign 64
y:      .skip 4 * ROUNDS
result0: .skip 4 * ROUNDS
result1: .skip 4 * ROUNDS
        .balign 64
payload: .long 0
        .balign 64
flag:   .long 0
        .balign 64
late:   .long 0
aligned: .quad 0
added:  .quad 0
spin:   .long 0
        .balign 8
guarded: .quad 0
        .balign 4096
        .skip 4094
crossing: .long 0
