// A hypervisor in miniature: enters a guest of its own by VMRUN, on its own tables, and looks at each
// way out of it. Where the processor has no SVM, its instructions are undefined.
// expect: exit 1
#include "guests/edge/edge.inc"

#define EXIT_CODE      0x070
#define EXIT_INFO1     0x078
#define EXIT_INFO2     0x080
#define EXIT_INT_INFO  0x088
#define EVENT_INJ      0x0a8
#define NEXT_RIP       0x0c8
#define SAVED_RFLAGS   0x570
#define SAVED_RIP      0x578
#define SAVED_RSP      0x5d8
#define SAVED_RAX      0x5f8

// Runs the guest from `rip`, with everything else as it was left.
        .macro run_guest rip
        movq $\rip, block + SAVED_RIP
        call enter
        .endm

// Exits with `value` unless the quadword at `offset` of the control block is `expected`.
        .macro expect_field offset, expected, value
        movabsq $\expected, %rcx
        cmpq %rcx, block + \offset
        require e, \value
        .endm

// Asks for the event `word`, with `error` as its error code.
        .macro inject word, error=0
        movl $\word, block + EVENT_INJ
        movl $\error, block + EVENT_INJ + 4
        .endm

        .globl GuestMain
GuestMain:
        set_gate 2, interrupt
        set_gate 6, undefined_opcode
        set_gate 0x40, interrupt
        lidt idt_pointer
        // Without SVM, or with EFER.SVME clear: #UD.
        movl $block, %eax
        movl $3, %r15d
        xorl %r14d, %r14d
        vmrun
        vmload
        vmsave
        stgi
        clgi
        cmpl $5, %r14d
        require e, 1
        movl $0x80000000, %eax
        cpuid
        cmpl $0x8000000a, %eax
        require ae, 0                   // no SVM: that was all
        movl $0x80000001, %eax
        cpuid
        testl $4, %ecx
        require nz, 0
        movl $0xc0000080, %ecx
        rdmsr
        orl $0x1000, %eax               // EFER.SVME
        wrmsr
        movl $0xc0010117, %ecx          // VM_HSAVE_PA
        movl $host_save, %eax
        xorl %edx, %edx
        wrmsr

        // A control block that intercepts no VMRUN describes no guest.
        call describe
        movl $0, block + 0x010
        run_guest guest_calls
        expect_field EXIT_CODE, -1, 2

        // VMMCALL.
        call describe
        run_guest guest_calls
        expect_field EXIT_CODE, 0x81, 3
        expect_field SAVED_RIP, guest_calls, 4
        expect_field NEXT_RIP, guest_called, 5
        expect_field EXIT_INT_INFO, 0, 6

        // CPUID, whose answer is made up; registers but RAX and RSP are passed through.
        orl $1 << 18, block + 0x00c
        movq $0x1234, block + SAVED_RAX
        movl $0x77, %ebx
        run_guest guest_asks
        expect_field EXIT_CODE, 0x72, 7
        expect_field SAVED_RAX, 0x1234, 8
        expect_field NEXT_RIP, guest_asked, 9
        movq $0x4321, block + SAVED_RAX
        run_guest guest_asked
        expect_field EXIT_CODE, 0x81, 10
        expect_field SAVED_RAX, 0x4321 + 0x77, 11

        // Ports, by the permission map: 60h is intercepted, 80h is not.
        orl $1 << 27, block + 0x00c
        movb $1, io_map + 0x60 / 8
        run_guest guest_ports
        expect_field EXIT_CODE, 0x7b, 12
        expect_field EXIT_INFO1, 0x600011, 13
        expect_field EXIT_INFO2, guest_read_port, 14

        // MSRs, by their map: writes of STAR are intercepted, reads are not.
        orl $1 << 28, block + 0x00c
        movb $1 << 3, msr_map + 0x800 + 0x81 / 4
        run_guest guest_msrs
        expect_field EXIT_CODE, 0x7c, 15
        expect_field EXIT_INFO1, 1, 16

        // A page fault, and one on the way of an injected exception.
        orl $1 << 14, block + 0x008
        run_guest guest_touches
        expect_field EXIT_CODE, 0x4e, 17
        expect_field EXIT_INFO1, 2, 18
        expect_field EXIT_INFO2, -4096, 19
        inject 0x80000b0d, 0x55                 // #GP, with an error code
        set_gate 13, interrupt
        pushq block + SAVED_RSP
        movq $-4096, block + SAVED_RSP
        run_guest guest_calls
        popq block + SAVED_RSP
        expect_field EXIT_CODE, 0x4e, 20
        movabsq $0x5580000b0d, %rcx
        cmpq %rcx, block + EXIT_INT_INFO
        require e, 21
        testl $0x80000000, block + EVENT_INJ
        require z, 22

        // An injected interrupt is taken before the first instruction.
        movl $0, interrupts
        inject 0x80000040
        run_guest guest_calls
        expect_field EXIT_CODE, 0x81, 23
        cmpl $1, interrupts
        require e, 24

        // A virtual interrupt waits for the guest's IF, and is the guest's alone.
        movl $0x010f0100, block + 0x060         // V_INTR_MASKING, priority 15, V_IRQ
        movl $0x40, block + 0x064
        run_guest guest_calls
        expect_field EXIT_CODE, 0x81, 25
        cmpl $1, interrupts
        require e, 26
        testl $0x100, block + 0x060
        require nz, 27
        run_guest guest_opens
        expect_field EXIT_CODE, 0x81, 28
        cmpl $2, interrupts
        require e, 29
        testl $0x100, block + 0x060
        require z, 30

        // An NMI that the guest sends to its processor comes out, and waits until STGI.
        orl $1 << 1, block + 0x00c
        run_guest guest_sends_nmi
        expect_field EXIT_CODE, 0x61, 31
        cmpl $2, interrupts
        require e, 32
        stgi
        nop
        cmpl $3, interrupts
        require e, 33

        // A triple fault is the guest's.
        orl $1 << 31, block + 0x00c
        andl $~(1 << 14), block + 0x008
        movw $0, block + 0x484                  // the limit of IDTR
        movw $0, block + 0x486
        run_guest guest_touches
        expect_field EXIT_CODE, 0x7f, 34

        // Of an event that no processor has nothing is delivered.
        call describe
        inject 0x80000302                       // exception 2
        run_guest guest_calls
        expect_field EXIT_CODE, -1, 35

        // VMSAVE writes what VMLOAD reads.
        movl $0xc0000101, %ecx                  // GS base
        movl $0x1000, %eax
        xorl %edx, %edx
        wrmsr
        movl $block, %eax
        vmsave
        expect_field 0x458, 0x1000, 36
        movq $0x2000, block + 0x458
        movl $block, %eax
        vmload
        movl $0xc0000101, %ecx
        rdmsr
        cmpl $0x2000, %eax
        require e, 37
        exit 0

// VMRUN with the host's interrupts off, so that #VMEXIT comes back here.
enter:  movl $block, %eax
        clgi
        vmrun
        ret

// Makes the control block one of a guest that shares everything with us but its stack.
describe:
        cld
        movl $block, %edi
        xorl %eax, %eax
        movl $512, %ecx
        rep stosq
        movl $3, block + 0x010                  // VMRUN, VMMCALL
        movq $io_map, block + 0x040
        movq $msr_map, block + 0x048
        movl $1, block + 0x058                  // ASID
        movw %cs, block + 0x410
        movw $0xa9b, block + 0x412
        movl $-1, block + 0x414
        movw %ss, block + 0x420
        movw $0xc93, block + 0x422
        movl $-1, block + 0x424
        sgdt table
        movzwl table, %eax
        movl %eax, block + 0x464
        movq table + 2, %rax
        movq %rax, block + 0x468
        movl $16 * 256 - 1, block + 0x484
        movq $idt, block + 0x488
        movl $0xc0000080, %ecx
        rdmsr
        movl %eax, block + 0x4d0
        movq %cr4, %rax
        movq %rax, block + 0x548
        movq %cr3, %rax
        movq %rax, block + 0x550
        movq %cr0, %rax
        movq %rax, block + 0x558
        movl $0x400, block + 0x560
        movl $0xffff0ff0, %eax
        movq %rax, block + 0x568
        movq $2, block + SAVED_RFLAGS
        movq $guest_stack_end, block + SAVED_RSP
        ret

// -- the guest

guest_calls:
        vmmcall
guest_called:
guest_asks:
        cpuid
guest_asked:
        addq %rbx, %rax
        vmmcall
guest_ports:
        outb %al, $0x80
        inb $0x60, %al
guest_read_port:
        vmmcall
guest_msrs:
        movl $0xc0000081, %ecx
        rdmsr
        wrmsr
        vmmcall
guest_touches:
        movb $0, -4096
        vmmcall
guest_opens:
        sti
        nop
        cli
        vmmcall
guest_sends_nmi:
        movl $0xfee00300, %ecx
        movl $0x44400, (%rcx)                   // NMI to self
        nop
        vmmcall

interrupt:
        incl interrupts
        iretq

undefined_opcode:
        incl %r14d
        addq %r15, (%rsp)
        iretq

        define_idt
        .bss
        .balign 4096
block:  .skip 4096
host_save:
        .skip 4096
io_map: .skip 3 * 4096
msr_map:
        .skip 2 * 4096
        .skip 4096
guest_stack_end:
interrupts:
        .skip 4
table:  .skip 10
