// A non-canonical stack: #SS, then #DF on the same stack, then shutdown.
// expect: shutdown
#include "guests/edge/edge.inc"
        .globl GuestMain
GuestMain:
        set_gate 8, never
        set_gate 12, never
        lidt idt_pointer
        movabsq $0x8000000000000000, %rsp
        pushq %rax
never:  exit 1
        define_idt
