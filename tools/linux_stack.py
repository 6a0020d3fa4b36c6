"""Hypervisors upon hypervisors: Debian's QEMU with KVM in the guest boots Linux, whose KVM runs
guests in turn. Three of them, one in the other, on Pagesaw."""

import os
import re
import shutil
import subprocess

import linux_guest

QEMU = shutil.which("qemu-system-x86_64")
# Where Debian's packages have the firmware, and what of it QEMU wants.
FIRMWARE = {"/usr/share/seabios": ["bios-256k.bin"],
            "/usr/share/qemu": ["kvmvapic.bin", "linuxboot_dma.bin"]}
MEMORY = "1536M"

SCRIPT = """
qemu-system-x86_64 -accel kvm -cpu host -m 384 -smp %d -nodefaults -display none -serial stdio \\
  -no-reboot -kernel /boot/vmlinuz -initrd /boot/initramfs -L /usr/share/qemu \\
  -append "console=ttyS0 quiet demo=programs" </dev/null
"""
LAST_SCRIPT = """
echo "demo: $(nproc) processors, on which KVM runs programs"
vmm programs
"""
EXPECTED = ["hello from 16-bit mode", "hello from 32-bit mode with paging",
            "hello from 64-bit mode", "vmm: done", "demo: programs done", "demo: qemu done",
            "reboot: Power down"]


def libraries_of(program):
    """The files that the dynamic linker loads for it, itself included, by the names it uses."""
    done = subprocess.run(["ldd", program], stdout=subprocess.PIPE, text=True, check=True)
    return sorted(set(re.findall(r"(?:=> |^\t)(/\S+)", done.stdout, re.MULTILINE)))


def find_missing():
    """Why there is no QEMU to be had, or an empty text."""
    if QEMU is None:
        return "qemu-system-x86_64 is not installed (package qemu-system-x86)"
    for directory, names in FIRMWARE.items():
        for name in names:
            if not os.path.exists(os.path.join(directory, name)):
                return f"{os.path.join(directory, name)} is not there (packages seabios, qemu-system-data)"
    return ""


def read(path):
    with open(path, "rb") as file:
        return file.read()


def make_initramfs(files, programs, module, cpus):
    """Of the guest: QEMU, the kernel, and the initramfs of the guest's guest."""
    last = linux_guest.make_initramfs(files, programs, [module],
                                      scripts={"programs": LAST_SCRIPT})
    extra = {"boot/vmlinuz": read(files.kernel), "boot/initramfs": last,
             "bin/" + os.path.basename(QEMU): read(QEMU)}
    for path in libraries_of(QEMU):
        extra[path.lstrip("/")] = read(path)
    for directory, names in FIRMWARE.items():
        for name in names:
            extra["usr/share/qemu/" + name] = read(os.path.join(directory, name))
    return linux_guest.make_initramfs(files, (), [module], scripts={"qemu": SCRIPT % cpus},
                                      extra=extra)
