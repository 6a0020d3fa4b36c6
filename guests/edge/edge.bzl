"""The edge guests: what a hostile or unlucky guest does."""

load("//guests:guest.bzl", "guest_image")

EDGE_GUESTS = [
    "apic_moved",
    "atomic_mmio",
    "bad_root",
    "bad_stack",
    "branch_tracking",
    "breakpoints",
    "cli_halt",
    "cli_loop",
    "clocks",
    "compatibility",
    "console_flood",
    "cross_modify",
    "cross_ram_end",
    "double_fault",
    "echo",
    "endless_alignment",
    "endless_exceptions",
    "endless_mmio",
    "endless_tables",
    "exit_value",
    "fxsave_mmio",
    "garbage",
    "garbage_random",
    "hypercall",
    "idt_in_mmio",
    "ipi",
    "jump_to_mmio",
    "jump_to_nowhere",
    "litmus",
    "many",
    "many_halted",
    "random_ports",
    "real_mode",
    "rep_endless",
    "rep_out",
    "rep_wrap",
    "restart",
    "ring3",
    "root_in_mmio",
    "self_map",
    "self_modifying",
    "shadow_stack",
    "shared_tables",
    "single_step",
    "slots",
    "stack_in_mmio",
    "suspend",
    "svm",
    "svm_random",
    "table_in_mmio",
    "tables_everywhere",
    "task_state_in_mmio",
    "timer_wakes",
    "tlb",
    "triple_fault",
    "virtual_8086",
    "vmx",
    "vmx_random",
    "x87_error",
]

# These have an entry of their own and stay in 32-bit mode until they choose otherwise.
_WITHOUT_BOOT = [
    "endless_alignment",
    "real_mode",
    "virtual_8086",
]

def edge_guests(name):
    """A guest for each of EDGE_GUESTS.

    Args:
      name: a filegroup of all images and of the sources, whose headers say what to expect.
    """
    for guest in EDGE_GUESTS:
        guest_image(
            name = guest,
            srcs = [guest + ".S"] + ([] if guest in _WITHOUT_BOOT else ["//guests:support/boot.S"]),
            hdrs = ["edge.inc", "smp.inc", "vmx.inc", "//guests:support/selectors.h"],
        )
    native.filegroup(
        name = name,
        srcs = EDGE_GUESTS + [guest + ".S" for guest in EDGE_GUESTS],
    )
