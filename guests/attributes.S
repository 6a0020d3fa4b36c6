// Does one access to memory after the other as it is told from outside, so that what the host's
// memory attributes allow can be tried out. The mailbox at 5 MiB:
//   +0x00  command: set from outside, cleared when it is done
//   +0x08  how many are done
//   +0x10  the value that was read or returned
//   +0x18  vector of the exception that ended it, or 0; then its error code and CR2
//   +0x100 counts while a second processor, if there is one, runs the loop in the page at 0x603000
// Linear 0x600000 is the page at 0x600000 for the supervisor, 0x601000 the same for users, 0x602000
// a read-only page of users, and 0x800000 the page at 0x604000 through a table at 0x404000.
#include "guests/edge/edge.inc"
#include "guests/edge/smp.inc"

#define MAILBOX 0x500000
#define PML4 0x400000
#define PDPT 0x401000
#define PD 0x402000
#define PT 0x403000
#define OTHER_PT 0x404000
#define CODE 0x600000
#define LOOP 0x603000
#define READ_ONLY 0x602000
#define DATA 0x100                      // in each page, behind its code

        .macro fill_page to, from, end
        movl $\from, %esi
        movl $\to, %edi
        movl $(\end - \from), %ecx
        rep movsb
        .endm

        .globl GuestMain
GuestMain:
        movq $ring0_stack_end, task_state + 4
        movw $0x68, task_state + 0x66
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
        set_gate 14, page_fault
        set_gate 0x80, user_done, 3
        lidt idt_pointer
        fill_page CODE, answer, answer_end
        fill_page READ_ONLY, answer, answer_end
        fill_page LOOP, endless, endless_end
        movq $7, READ_ONLY + DATA
        movl $0xc0000080, %ecx          // EFER.NXE, so that #PF tells fetches
        rdmsr
        orl $0x800, %eax
        wrmsr
        start_other
        movq $(PDPT + 7), PML4
        movq $(PD + 7), PDPT
        movq $0x87, PD                  // 2 MiB pages of users: all below 6 MiB
        movq $0x200087, PD + 8
        movq $0x400087, PD + 16
        movq $(PT + 7), PD + 24
        movq $(OTHER_PT + 7), PD + 32
        movq $(CODE + 3), PT
        movq $(CODE + 7), PT + 8
        movq $(READ_ONLY + 5), PT + 16
        movq $(0x604000 + 3), OTHER_PT
        movl $PML4, %eax
        movq %rax, %cr3
        movl $1, MAILBOX + 8            // ready
next:   pause
        movl MAILBOX, %ebx
        testl %ebx, %ebx
        jz next
        movq $0, MAILBOX + 0x10
        movq $0, MAILBOX + 0x18
        movq $0, MAILBOX + 0x20
        movq $0, MAILBOX + 0x28
        movq %rsp, kernel_stack
        movq %cr3, %rax                 // whatever tables were changed
        movq %rax, %cr3
        xorl %eax, %eax
        jmp *commands(,%rbx,8)

done:   movq %rax, MAILBOX + 0x10
failed: movq kernel_stack, %rsp
        movq %cr0, %rax
        orl $0x10000, %eax              // CR0.WP
        movq %rax, %cr0
        movl $0, MAILBOX
        incl MAILBOX + 8
        jmp next

user_done:
        jmp done
general_protection:
        movq $13, MAILBOX + 0x18
        jmp 1f
page_fault:
        movq $14, MAILBOX + 0x18
        movq %cr2, %rcx
        movq %rcx, MAILBOX + 0x28
1:      popq %rcx
        movq %rcx, MAILBOX + 0x20
        jmp failed

supervisor_read:
        movq CODE + DATA, %rax
        jmp done
supervisor_write:
        movq $7, CODE + DATA
        jmp done
supervisor_call:
        movl $CODE, %ecx
        call *%rcx
        jmp done
supervisor_calls_user_page:
        movl $(CODE + 0x1000), %ecx
        call *%rcx
        jmp done
table_read:
        movq 0x800000 + DATA, %rax
        jmp done
table_write:
        movq $7, 0x800000 + DATA
        jmp done
table_change:
        movq $(0x604000 + 3), OTHER_PT
        jmp done
write_without_wp:
        movq %cr0, %rax
        andl $0xfffeffff, %eax
        movq %rax, %cr0
        movq $9, READ_ONLY + DATA
        movq READ_ONLY + DATA, %rax
        jmp done
call_after_write_without_wp:
        movq %cr0, %rax
        andl $0xfffeffff, %eax
        movq %rax, %cr0
        movq $9, READ_ONLY + DATA
        movl $READ_ONLY, %ecx
        call *%rcx
        jmp done

user_read:
        movl $1f, %ecx
        jmp enter_user
1:      movq CODE + 0x1000 + DATA, %rax
        int $0x80
user_write:
        movl $1f, %ecx
        jmp enter_user
1:      movq $7, CODE + 0x1000 + DATA
        int $0x80
user_call:
        movl $1f, %ecx
        jmp enter_user
1:      movl $(CODE + 0x1000), %ecx
        call *%rcx
        int $0x80

enter_user:                             // at RCX
        pushq $USER_DATA
        pushq $user_stack_end
        pushq $2
        pushq $USER_CODE
        pushq %rcx
        iretq

answer: movl $42, %eax
        ret
answer_end:
endless:
        lock
        incq MAILBOX + 0x100
        jmp endless
endless_end:

other:  movl $LOOP, %eax
        jmp *%rax

        .data
        .balign 8
commands:
        .quad next, supervisor_read, supervisor_write, supervisor_call
        .quad user_read, user_write, user_call, supervisor_calls_user_page
        .quad table_read, table_write, table_change
        .quad write_without_wp, call_after_write_without_wp

        define_idt
        define_smp
        .bss
        .balign 16
kernel_stack:
        .skip 8
        .balign 16
task_state:
        .skip 0x68
        .skip 4096
ring0_stack_end:
        .skip 4096
user_stack_end:
