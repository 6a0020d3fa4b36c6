// From the multiboot entry to 64-bit C++: identity-maps 4 GiB by 2 MiB pages, calls
// GuestMain(multiboot information).
#include "guests/support/selectors.h"

        .section .multiboot, "a"
        .long 0x1badb002, 0, -0x1badb002

        .text
        .code32
        .globl _start
_start:
        cld
        movl $boot_stack_end, %esp
        movl %ebx, %edi
        movl $boot_pml4, %eax
        movl %eax, %cr3
        movl $0x20, %eax                // CR4.PAE
        movl %eax, %cr4
        movl $0xc0000080, %ecx          // EFER.LME
        rdmsr
        orl $0x100, %eax
        wrmsr
        movl $0x80010011, %eax          // CR0.PG, WP, ET, PE
        movl %eax, %cr0
        lgdt gdt_pointer
        ljmp $KERNEL_CODE, $start64

        .code64
start64:
        movl $KERNEL_DATA, %eax
        movl %eax, %ds
        movl %eax, %es
        movl %eax, %ss
        xorl %eax, %eax
        movl %eax, %fs
        movl %eax, %gs
        movl $boot_stack_end, %esp
        movl %edi, %edi
        call GuestMain
1:      cli
        hlt
        jmp 1b

        .data
        .balign 16
        .globl gdt
gdt:
        .quad 0
        .quad 0x00af9b000000ffff        // KERNEL_CODE
        .quad 0x00cf93000000ffff        // KERNEL_DATA
        .quad 0x00cffb000000ffff        // USER_CODE32
        .quad 0x00cff3000000ffff        // USER_DATA
        .quad 0x00affb000000ffff        // USER_CODE
        .quad 0, 0                      // TASK_STATE, filled by LoadTaskState
        .quad 0x00cf9b000000ffff        // KERNEL_CODE32
gdt_end:
        .globl gdt_pointer
gdt_pointer:
        .word gdt_end - gdt - 1
        .quad gdt

        .balign 4096
        .globl boot_pml4
boot_pml4:
        .quad boot_pdpt + 0x07
        .fill 511, 8, 0
boot_pdpt:
        .quad boot_pd + 0x0007, boot_pd + 0x1007, boot_pd + 0x2007, boot_pd + 0x3007
        .fill 508, 8, 0
boot_pd:
        .set page, 0
        .rept 2048
        .quad page + 0x87               // PS, U/S, R/W, P
        .set page, page + 0x200000
        .endr

        .bss
        .balign 16
        .skip 0x4000
        .globl boot_stack_end
boot_stack_end:
