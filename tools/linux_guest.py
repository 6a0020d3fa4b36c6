"""Linux as a guest, from Debian's packages: finds them, and makes an initramfs."""

import glob
import os
import re
import subprocess
import tempfile

META_PACKAGE = "linux-image-cloud-amd64"
BUSYBOX_PACKAGE = "busybox-static"
KERNELS = "boot/vmlinuz-*-cloud-amd64"


class Problem(Exception):
    """What a person has to know, in one sentence."""


# -- packages

def cache_directory():
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(base, "pagesaw", "guests")


def version_key(path):
    return [int(part) for part in re.findall(r"\d+", os.path.basename(path))]


class Files:
    """What of the packages a guest is made of, below one directory."""

    def __init__(self, root):
        kernels = sorted(glob.glob(os.path.join(root, KERNELS)), key=version_key)
        self.kernel = kernels[-1] if kernels else None
        # A busybox of another package may need libraries, which an initramfs does not have.
        programs = [os.path.join(root, path) for path in ("bin/busybox", "usr/bin/busybox")]
        self.busybox = next((path for path in programs if is_static(path)), None)
        self.modules = None
        if self.kernel:
            release = os.path.basename(self.kernel)[len("vmlinuz-"):]
            self.modules = os.path.join(root, "lib/modules", release, "kernel")

    def complete(self):
        return bool(self.kernel and self.busybox)


def is_static(path):
    """Whether `path` is an ELF program that names no interpreter."""
    try:
        with open(path, "rb") as file:
            start = file.read(4096)
    except OSError:
        return False
    return start.startswith(b"\x7fELF") and b"/ld-linux" not in start


def find_files(root=None):
    """The files below `root`, or installed, or unpacked earlier; None if they are nowhere."""
    for place in [root] if root else ["/", cache_directory()]:
        files = Files(place)
        if files.complete():
            return files
    return None


def run_quietly(words, directory):
    done = subprocess.run(words, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, check=False)
    if done.returncode != 0:
        last = (done.stdout.strip().splitlines() or ["no output"])[-1]
        raise Problem(f"{' '.join(words)}: {last}")
    return done.stdout


def download_files():
    """Unpacks the packages into the cache directory. Nothing is installed."""
    target = cache_directory()
    os.makedirs(target, exist_ok=True)
    depends = run_quietly(["apt-cache", "depends", META_PACKAGE], target)
    kernel = re.search(r"Depends: (linux-image-\S+)", depends)
    if not kernel:
        raise Problem(f"package {META_PACKAGE}: not known to apt; see apt-get update")
    with tempfile.TemporaryDirectory(dir=target) as directory:
        run_quietly(["apt-get", "download", kernel.group(1), BUSYBOX_PACKAGE], directory)
        for package in glob.glob(os.path.join(directory, "*.deb")):
            run_quietly(["dpkg", "-x", package, target], directory)
    return find_files(target)


# -- initramfs

class Archive:
    """A cpio archive in the format "newc", which the kernel unpacks as its root file system."""

    def __init__(self):
        self._parts = []
        self._inode = 0

    def _add(self, name, mode, data=b"", device=(0, 0)):
        self._inode += 1
        encoded = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
        header = b"070701" + b"".join(b"%08x" % field for field in fields)
        for part in (header + encoded, data):
            self._parts.append(part + b"\0" * (-len(part) % 4))

    def directory(self, name):
        self._add(name, 0o40755)

    def file(self, name, data, executable=False):
        self._add(name, 0o100755 if executable else 0o100644, data)

    def character_device(self, name, major, minor):
        self._add(name, 0o20600, device=(major, minor))

    def bytes(self):
        self._add("TRAILER!!!", 0)
        return b"".join(self._parts)


# `demo` is on the kernel's command line, which gives what it does not know to init.
INIT = r"""#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
echo "demo: Linux $(uname -r), $(nproc) processors, up $(cut -d' ' -f1 /proc/uptime) s"
# Parameters of modules are on the kernel's command line, as NAME.PARAMETER=VALUE.
for file in $(cat /modules/order); do
  name=$(basename "$file" .ko | tr - _)
  insmod "/modules/$file" $(tr ' ' '\n' </proc/cmdline | sed -n "s/^$name\.//p") || exit 1
done
if [ -n "$demo" ]; then
  sh "/demo/$demo" && echo "demo: $demo done, up $(cut -d' ' -f1 /proc/uptime) s"
  poweroff -f
fi
exec setsid cttyhack sh
"""

TEST = """
said() { echo "demo: $*, up $(cut -d' ' -f1 /proc/uptime) s"; }
i=0
while [ $i -lt 1000 ]; do
  /bin/true & wait $! || exit 1
  i=$((i + 1))
done
said "forked $i processes"
probe map || exit 1
said "mapped and unmapped"
dd if=/dev/urandom of=/tmp/a bs=1M count=8 2>/dev/null || exit 1
cp /tmp/a /tmp/b
[ "$(sha256sum </tmp/a)" = "$(sha256sum </tmp/b)" ] || exit 1
[ "$(printf abc | sha256sum)" = \\
  "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  -" ] || exit 1
said "sums agree"
"""

# For a clock that skips while nobody works.
IDLE = """
sh /demo/test && sleep 3600
"""

KVM = """
vmm programs && vmm linux /boot/vmlinuz
"""

DISK = """
[ "$(cat /sys/block/vda/size)" = 32768 ] || exit 1
[ "$(sha256sum </dev/vda)" = "$(sha256sum </dev/vda)" ] || exit 1
echo "demo: disk $(sha256sum </dev/vda)"
dd if=/dev/urandom of=/tmp/a bs=1M count=4 2>/dev/null
dd if=/tmp/a of=/dev/vda bs=1M seek=8 conv=fsync 2>/dev/null || exit 1
echo 3 >/proc/sys/vm/drop_caches
[ "$(dd if=/dev/vda bs=1M skip=8 count=4 2>/dev/null | sha256sum)" = "$(sha256sum </tmp/a)" ] || exit 1
[ "$(cat /sys/class/misc/hw_random/rng_current)" = virtio_rng.0 ] || exit 1
[ "$(dd if=/dev/hwrng bs=64 count=1 2>/dev/null | wc -c)" = 64 ] || exit 1
exec 3<>/dev/hvc0
echo "demo: type a line" >&3
read -r line <&3
echo "demo: typed '$line'" >&3
"""

NESTED_SPIN = """
exec vmm spin
"""

SPIN = """
echo "demo: kernel $(grep 'Kernel code' /proc/iomem) $(grep ' _text$' /proc/kallsyms)"
exec probe spin
"""


def module_closure(names, kernel_modules):
    """Paths of the modules and of what they need, in the order of loading."""
    everything = {}
    for path in glob.glob(os.path.join(kernel_modules, "**", "*.ko"), recursive=True):
        everything[os.path.basename(path)[:-3].replace("-", "_")] = path
    order = []

    def visit(name):
        path = everything.get(name.replace("-", "_"))
        if path is None:
            raise Problem(f"module {name}: there is none below {kernel_modules}")
        with open(path, "rb") as file:
            needs = re.search(rb"\0depends=([^\0]*)\0", file.read()).group(1).decode()
        for need in filter(None, needs.split(",")):
            visit(need)
        if path not in order:
            order.append(path)

    for name in names:
        visit(name)
    return order


# By what `demo` names them.
SCRIPTS = {"nothing": "true", "test": TEST, "idle": IDLE, "spin": SPIN, "kvm": KVM,
           "nested-spin": NESTED_SPIN, "disk": DISK}


def directories_of(paths):
    """What must be made before files of these names, outermost first."""
    found = set()
    for path in paths:
        while path := os.path.dirname(path):
            found.add(path)
    return sorted(found)


def make_initramfs(files, programs=(), modules=(), with_kernel=False, scripts=None, extra=None):
    """The archive: busybox, init, the scripts by name, programs by path (NAME.linux), modules by
    name, if wanted the kernel, for a guest that boots it itself, and `extra`: programs and other
    files by their names there."""
    archive = Archive()
    extra = extra or {}
    own = {"bin", "dev", "demo", "modules", "proc", "sys", "tmp"}
    for name in sorted(own | set(directories_of(extra))):
        archive.directory(name)
    archive.character_device("dev/console", 5, 1)
    with open(files.busybox, "rb") as file:
        archive.file("bin/busybox", file.read(), executable=True)
    for path in programs:
        with open(path, "rb") as file:
            name = os.path.basename(path).removesuffix(".linux")
            archive.file("bin/" + name, file.read(), executable=True)
    archive.file("init", INIT.encode(), executable=True)
    for name, script in (SCRIPTS if scripts is None else scripts).items():
        archive.file("demo/" + name, script.encode())
    for name, data in extra.items():
        archive.file(name, data, executable=True)
    if with_kernel:
        archive.directory("boot")
        with open(files.kernel, "rb") as file:
            archive.file("boot/vmlinuz", file.read())
    order = module_closure(modules, files.modules)
    for path in order:
        with open(path, "rb") as file:
            archive.file("modules/" + os.path.basename(path), file.read())
    archive.file("modules/order", "".join(os.path.basename(p) + "\n" for p in order).encode())
    return archive.bytes()
