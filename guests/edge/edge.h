// For the edge guests. Each file's header says what must become of it:
//   // expect: exit N      the guest writes to isa-debug-exit; N is the status of the process
//   // expect: shutdown    triple fault
//   // expect: runs        still running, or halted, when the time is up
//   // expect: stops       any end of the guest but an exit of its own
//   // expect: any         whatever the processor makes of it
// and, if it prints, `// console: TEXT` for each line. In every case the machine around it stays healthy.
#ifndef GUESTS_EDGE_EDGE_H_
#define GUESTS_EDGE_EDGE_H_

#include "guests/support/selectors.h"

// Ends the machine with status (value << 1) | 1.
        .macro exit value
        movl $\value, %eax
        outl %eax, $0xf4
9:      hlt
        jmp 9b
        .endm

// Prints the text at `text`, without waiting for the port.
        .macro print text
        movw $0x3f8, %dx
        movl $\text, %esi
8:      lodsb
        testb %al, %al
        jz 7f
        outb %al, %dx
        jmp 8b
7:
        .endm

// Exits with `value` unless the flags are as `condition` says.
        .macro require condition, value
        j\condition 6f
        exit \value
6:
        .endm

// Makes `vector` of the IDT at `idt` go to `entry` through an interrupt gate of privilege `dpl`. Clobbers RAX.
        .macro set_gate vector, entry, dpl=0
        movl $\entry, %eax
        movw %ax, idt + 16 * \vector
        movw $KERNEL_CODE, idt + 16 * \vector + 2
        movw $(0x8e00 | \dpl << 13), idt + 16 * \vector + 4
        shrl $16, %eax
        movw %ax, idt + 16 * \vector + 6
        .endm

// Room for an IDT, and its pointer.
        .macro define_idt
        .bss
        .balign 16
idt:    .skip 16 * 256
        .data
idt_pointer:
        .word 16 * 256 - 1
        .quad idt
        .text
        .endm

#endif  // GUESTS_EDGE_EDGE_H_
