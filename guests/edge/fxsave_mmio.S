// FXSAVE and FXRSTOR of device memory, the test device's: more accesses than other instructions make.
// expect: exit 1
#include "guests/edge/edge.inc"
#define DEVICE_MEMORY 0xff000000
        .globl GuestMain
GuestMain:
        movq %cr4, %rax
        orl $0x200, %eax                // OSFXSR
        movq %rax, %cr4
        movl $DEVICE_MEMORY, %edi
        movq $0x0123456789abcdef, %rax
        movq %rax, %xmm0
        movq %rax, %xmm15
        fninit
        fld1
        fxsave (%rdi)
        fxsave area
        movl $area, %esi
        movl $416 / 8, %ecx             // up to the reserved bytes
1:      movq (%rsi), %rdx
        cmpq %rdx, (%rdi)
        require e, 2
        addl $8, %esi
        addl $8, %edi
        loop 1b
        movl $DEVICE_MEMORY, %edi
        xorps %xmm0, %xmm0
        xorps %xmm15, %xmm15
        fninit
        fxrstor (%rdi)
        movq %xmm0, %rcx
        cmpq %rcx, %rax
        require e, 3
        movq %xmm15, %rcx
        cmpq %rcx, %rax
        require e, 4
        fstps word
        cmpl $0x3f800000, word          // 1.0f
        require e, 5
        exit 0
        .bss
        .balign 16
area:   .skip 512
word:   .skip 4
