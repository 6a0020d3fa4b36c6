// Suspend to RAM: the guest sleeps until the alarm of the real-time clock and wakes in real mode where
// it asked to, with its memory as it was and a status that says that it woke.
// expect: exit 1
#include "guests/edge/edge.inc"
#define WAKING_VECTOR 0xe004c
#define RESUME 0x1000
#define MAGIC 0x12345678
#define PM_EVENTS 0x600
#define PM_CONTROL 0x604

        .macro set_rtc index, value
        movb $\index, %al
        outb %al, $0x70
        movb $\value, %al
        outb %al, $0x71
        .endm

        .globl GuestMain
GuestMain:
        movl $resume, %esi
        movl $RESUME, %edi
        movl $resume_end - resume, %ecx
        rep movsb
        movl $MAGIC, 0x2000
        movl $RESUME + 2, WAKING_VECTOR // 0100:0002
        movw $PM_EVENTS + 2, %dx
        movw $0x400, %ax                // the alarm wakes
        outw %ax, %dx
        set_rtc 1, 0xc0                 // each second
        set_rtc 3, 0xc0
        set_rtc 5, 0xc0
        set_rtc 0xb, 0x22
        movb $0xc, %al
        outb %al, $0x70
        inb $0x71, %al                  // forget what was before
        movw $PM_CONTROL, %dx
        movw $0x2400, %ax               // S3
        outw %ax, %dx
        exit 1                          // not reached

        .code16
resume:
        hlt                             // not reached: the vector is behind it
        hlt
        movl $3, %eax
        movw %cs, %bx
        cmpw $RESUME >> 4, %bx
        jne 1f
        movl $4, %eax
        cmpl $MAGIC, 0x2000
        jne 1f
        movw $PM_EVENTS, %dx
        inw %dx, %ax
        andw $0x8400, %ax               // woke, by the alarm
        subw $0x8400, %ax
        movzwl %ax, %eax
1:      outl %eax, $0xf4
2:      hlt
        jmp 2b
resume_end:
        .code64
