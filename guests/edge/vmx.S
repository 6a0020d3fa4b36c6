// A hypervisor in miniature: enters a guest of its own by VMLAUNCH and VMRESUME, on its own tables, and looks at each way out of it. Where the
// processor has no VMX, its instructions are undefined.
// expect: exit 1
#include "guests/edge/vmx.inc"

        .globl GuestMain
GuestMain:
        set_gate 2, interrupt
        set_gate 6, undefined_opcode
        set_gate 13, protection
        set_gate 0x40, interrupt
        lidt idt_pointer
        // Without VMX, or with CR4.VMXE clear: #UD.
        movl $3, %r15d
        xorl %r14d, %r14d
        vmlaunch
        vmresume
        vmxoff
        cmpl $3, %r14d
        require e, 1
        movl $1, %eax
        cpuid
        testl $1 << 5, %ecx
        require nz, 0                   // no VMX: that was all
        movl $0x3a, %ecx                // IA32_FEATURE_CONTROL
        rdmsr
        cmpl $5, %eax
        require e, 2
        movq %cr4, %rax
        orl $0x2000, %eax
        movq %rax, %cr4
        movl $0x480, %ecx
        rdmsr
        movl %eax, vmxon_region
        movl %eax, vmcs_region
        // CR0.NE is not set yet: #GP.
        movl $5f, %r15d
        vmxon vmxon_pointer
        exit 3
5:      movq %cr0, %rax
        orl $0x20, %eax
        movq %rax, %cr0
        vmxon vmxon_pointer
        require a, 4                    // neither CF nor ZF
        // Now CR4.VMXE stays.
        movl $5f, %r15d
        movq %cr4, %rax
        andl $~0x2000, %eax
        movq %rax, %cr4
        exit 5
5:      movq $-1, %rax
        vmread %rax, %rbx               // no VMCS yet
        require c, 6
        vmclear vmcs_pointer
        require a, 7
        vmptrld vmxon_pointer           // without a current VMCS there is no error number
        require c, 8
        vmptrld vmcs_pointer
        require a, 9
        call describe

        // What cannot be entered.
        call resume
        require z, 10
        expect_field ERROR_NUMBER, 5, 11
        movl $PIN, %ecx
        vmread %rcx, %rbx
        xorl %eax, %eax
        vmwrite %rax, %rcx
        call launch
        require z, 12
        expect_field ERROR_NUMBER, 7, 13
        movl $PIN, %ecx
        vmwrite %rbx, %rcx
        write GUEST_RFLAGS, $0
        call launch
        expect_field EXIT_REASON, 0x80000021, 14
        write GUEST_RFLAGS, $2

        // VMCALL.
        write GUEST_RIP, $guest_calls
        call launch
        expect_field EXIT_REASON, 18, 15
        expect_field GUEST_RIP, guest_calls, 16
        expect_field EXIT_LENGTH, 3, 17
        expect_field IDT_VECTORING, 0, 18

        // CPUID; registers but RSP are passed through.
        movl $0x77, %ebx
        run_guest guest_asks
        expect_field EXIT_REASON, 10, 19
        cmpl $0x77, %ebx
        require e, 20
        expect_field EXIT_LENGTH, 2, 21

        // Ports and MSRs, by their bitmaps.
        movb $1, io_bitmap + 0x60 / 8
        movb $2, msr_bitmap + 0xc00 + 0x80 / 8
        add_bits PRIMARY, 0x12000000
        run_guest guest_ports
        expect_field EXIT_REASON, 30, 22
        expect_field QUALIFICATION, 0x600048, 23
        run_guest guest_msrs
        expect_field EXIT_REASON, 32, 24

        // Control registers: TS is ours, and reads as set.
        write CR0_MASK, $8
        write CR0_SHADOW, $8
        run_guest guest_reads_cr0
        expect_field EXIT_REASON, 28, 25
        expect_field QUALIFICATION, 0x20, 26    // CLTS
        testb $8, %bl
        require nz, 27
        movq %cr0, %rax
        testb $8, %al
        require z, 28
        write CR0_MASK, $0

        // A page fault, and one on the way of an injected exception.
        add_bits EXCEPTIONS, 1 << 14
        run_guest guest_touches
        expect_field EXIT_REASON, 0, 29
        expect_field EXIT_EVENT, 0x80000b0e, 30
        expect_field EXIT_ERROR, 2, 31
        expect_field QUALIFICATION, -4096, 32
        write ENTRY_EVENT, $0x80000b0d          // #GP, with an error code
        write ENTRY_ERROR, $0x55
        write GUEST_RSP, $-4096
        run_guest guest_calls
        expect_field EXIT_REASON, 0, 33
        expect_field IDT_VECTORING, 0x80000b0d, 34
        expect_field IDT_ERROR, 0x55, 35
        expect_field ENTRY_EVENT, 0xb0d, 36
        write GUEST_RSP, $guest_stack_end

        // An injected interrupt is taken before the first instruction.
        write GUEST_RFLAGS, $0x202
        write ENTRY_EVENT, $0x80000040
        run_guest guest_calls
        expect_field EXIT_REASON, 18, 37
        cmpl $1, interrupts
        require e, 38

        // The monitor trap comes behind one instruction.
        add_bits PRIMARY, 1 << 27
        run_guest guest_steps
        expect_field EXIT_REASON, 37, 39
        expect_field GUEST_RIP, guest_stepped, 40
        take_bits PRIMARY, 1 << 27

        // An interrupt window opens behind the shadow of STI.
        add_bits PRIMARY, 1 << 2
        write GUEST_RFLAGS, $2
        run_guest guest_opens
        expect_field EXIT_REASON, 7, 41
        expect_field GUEST_RIP, guest_open, 42
        take_bits PRIMARY, 1 << 2

        // The preemption timer ends a loop, and a halt.
        add_bits PIN, 1 << 6
        write TIMER, $1000
        run_guest guest_loops
        expect_field EXIT_REASON, 52, 43
        write TIMER, $1000
        run_guest guest_halts
        expect_field EXIT_REASON, 52, 44
        take_bits PIN, 1 << 6
        write 0x4826, $0                        // active again

        // An NMI that the guest sends to its processor comes out, and blocks others.
        add_bits PIN, 1 << 3
        run_guest guest_sends_nmi
        expect_field EXIT_REASON, 0, 45
        expect_field EXIT_EVENT, 0x80000202, 46
        cmpl $1, interrupts
        require e, 47

        // An interrupt comes out whatever RFLAGS.IF is, with its vector if that is asked for.
        add_bits PIN, 1
        add_bits EXIT_CONTROLS, 1 << 15
        movl $0xfee000f0, %eax
        movl $0x1ff, (%rax)                     // the local APIC is on
        write GUEST_RFLAGS, $2
        run_guest guest_sends_interrupt
        expect_field EXIT_REASON, 1, 48
        expect_field EXIT_EVENT, 0x80000040, 49
        cmpl $1, interrupts
        require e, 50

        // INVVPID wants a VPID.
        movl $1, %eax
        invvpid descriptor, %rax
        require z, 51
        expect_field ERROR_NUMBER, 28, 52
        movl $2, %eax
        invvpid descriptor, %rax
        require a, 53

        // VM entries and VM exits load the time-stamp counter, too.
        write 0x200a, $counter_list
        write 0x4014, $1
        write 0x2008, $counter_list + 16
        write 0x4010, $1
        run_guest guest_counts
        expect_field EXIT_REASON, 18, 56
        shrl $24, %edx
        cmpl $0x10, %edx
        require e, 57
        rdtsc
        shrl $24, %edx
        cmpl $0x20, %edx
        require e, 58
        write 0x4014, $0
        write 0x4010, $0

        // A triple fault is the guest's.
        take_bits EXCEPTIONS, 1 << 14
        write GUEST_IDT_LIMIT, $0
        run_guest guest_touches
        expect_field EXIT_REASON, 2, 54
        vmxoff
        require a, 55
        exit 0

// -- the guest

guest_asks:
        cpuid
guest_counts:
        rdtsc
guest_calls:
        vmcall
guest_ports:
        outb %al, $0x80
        inb $0x60, %al
        vmcall
guest_msrs:
        movl $0xc0000081, %ecx
        rdmsr
        wrmsr
        vmcall
guest_reads_cr0:
        movq %cr0, %rbx
        clts
        vmcall
guest_touches:
        movb $0, -4096
        vmcall
guest_steps:
        nop
guest_stepped:
        vmcall
guest_opens:
        sti
        nop
guest_open:
        vmcall
guest_loops:
        jmp guest_loops
guest_halts:
        hlt
        vmcall
guest_sends_nmi:
        movl $0xfee00300, %ecx
        movl $0x44400, (%rcx)                   // NMI to self
        nop
        vmcall
guest_sends_interrupt:
        movl $0xfee00300, %ecx
        movl $0x44040, (%rcx)                   // vector 40h to self
        nop
        vmcall

interrupt:
        incl interrupts
        iretq

undefined_opcode:
        incl %r14d
        addq %r15, (%rsp)
        iretq

// To where R15 says.
protection:
        addq $8, %rsp
        movq %r15, (%rsp)
        iretq

        define_idt
        define_vmx
        .balign 16
counter_list:
        .quad 0x10, 0x10 << 56
        .quad 0x10, 0x20 << 56
        .bss
interrupts:
        .skip 4
