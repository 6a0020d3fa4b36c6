"""The self-test of tools/linux-demo: boots Linux in many ways and looks at what becomes of it."""

import dataclasses
import hashlib
import json
import os
import re
import subprocess
import tempfile
import time

import linux_guest
import linux_stack
from linux_console import Progress, lines_of

MEMORY = "512M"
# A guest is ended after this in any case. What has come to a stop is found much sooner, by its silence.
LIMIT_SECONDS = 3600


def say(text):
    print(text, flush=True)


class Failure(Exception):
    """What was not as it should be."""


@dataclasses.dataclass
class Case:
    """One thing to be tested. `run(context, settings)` says in a few words what was seen, or raises
    Failure. The settings are of the JSON file, and of the case's name."""
    run: object
    settings: dict

    @property
    def name(self):
        return " ".join(str(value) if key in ("test", "module") else f"--{key}={value}"
                        if key in ("vendor", "tdp", "cpus", "clock") else f"{key}={value}"
                        for key, value in self.settings.items())


@dataclasses.dataclass
class Context:
    programs: object  # paths of ours: ctl, daemon, in_guest
    files: linux_guest.Files
    initramfs: str
    progress: Progress

    def run_words(self, cmdline, more, initramfs=None, memory=MEMORY):
        return [self.programs.ctl, "run", self.files.kernel,
                f"--initrd={initramfs or self.initramfs}", f"--memory={memory}",
                f"--cmdline=console=ttyS0 {cmdline}".rstrip(), f"--time_limit={LIMIT_SECONDS}s",
                *more]

    def run_guest(self, words, expected, answer=None):
        """Runs a guest to its end: its console, with every one of `expected` in it. To a line that
        has answer[0], answer[1] is typed."""
        console = ""
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT) as running:
            try:
                for line in lines_of(running.stdout, self.progress):
                    console += line
                    if answer and answer[0] in line:
                        running.stdin.write(answer[1].encode())
                        running.stdin.flush()
            except BaseException:
                running.terminate()
                raise
        missing = [line for line in expected if line not in console]
        if running.returncode != 0 or missing:
            raise Failure(f"exit status {running.returncode}, without {missing}; the console's end:\n"
                          + console[-2000:])
        return console


class Daemon:
    """A daemon of our own, and commands to it."""

    def __init__(self, context):
        self._context = context
        self._directory = tempfile.TemporaryDirectory()
        self._socket = f"unix:{self._directory.name}/s"
        self._process = subprocess.Popen([context.programs.daemon, f"--listen={self._socket}"],
                                         stdout=subprocess.PIPE)
        self._process.stdout.readline()  # that it listens

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.terminate()
        self._process.wait()
        self._directory.cleanup()

    def words(self, *words):
        return [self._context.programs.ctl, *words, f"--socket={self._socket}"]

    def call(self, *words):
        self._context.progress.show()
        done = subprocess.run(self.words(*words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, check=False)
        if done.returncode != 0:
            raise Failure(f"pagesawctl {' '.join(words)}: {done.stdout.strip()}")
        return done.stdout

    def expect(self, words, pattern):
        """What the first group of `pattern`, or all of it, matched in a command's output."""
        text = self.call(*words)
        found = re.search(pattern, text)
        if not found:
            raise Failure(f"pagesawctl {' '.join(words)}: nothing like '{pattern}' in\n{text}")
        return found.group(found.lastindex or 0)

    def await_lines(self, vm, *patterns):
        """Reads the console until there was a line like each of `patterns`, in that order."""
        found = []
        with subprocess.Popen(self.words("vm", "console", vm), stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT) as console:
            try:
                for line in lines_of(console.stdout, self._context.progress):
                    match = re.search(patterns[len(found)], line)
                    if match:
                        found.append(match)
                    if len(found) == len(patterns):
                        return found
            finally:
                console.kill()
        raise Failure(f"the console of {vm} ended without a line like {patterns[len(found)]}")


# -- Linux

WORK = ["demo: forked 1000 processes", "mapped 200 MiB", "demo: sums agree", "demo: test done",
        "reboot: Power down"]


def test_boot(context, settings):
    words = context.run_words("demo=test", [f"--{key}={settings[key]}"
                                            for key in ("vendor", "tdp", "cpus")])
    console = context.run_guest(words, [*WORK, f", {settings['cpus']} processors,"])
    up = re.search(r"processors, up ([\d.]+) s", console)
    return f"init after {up.group(1)} s; forked, mapped, summed, switched itself off"


# With page table isolation the two tables of a process are neighbours: the user's is the upper one.
USER_TABLE = 1 << 12


class Inspection:
    """Compares what a guest says of its memory with what can be seen from outside."""

    def __init__(self, daemon, settings):
        self._daemon = daemon
        self._settings = settings
        kernel, data, code = daemon.await_lines(
            "spin", r"demo: kernel\s+(\w+)-\w+ : Kernel code (\w+) T _text",
            r"probe: data gva (\w+) gpa (\w+) value (\w+)", r"probe: code gva (\w+) gpa (\w+)")
        self._text_gpa, self._text_gva = f"0x{int(kernel.group(1), 16):x}", "0x" + kernel.group(2)
        self._data_gva, self._value = data.group(1), int(data.group(3), 16)
        self._data_gpa = f"0x{int(data.group(2), 16):x}"
        self._code_gva, self._code_gpa = code.group(1), f"0x{int(code.group(2), 16):x}"

    def _walk(self, gva, gpa, *options):
        """The guest's tables map `gva` to `gpa`; with None they forbid the access."""
        wanted = f"is allowed: it is {gpa} " if gpa else "faults"
        self._daemon.expect(["walk", "spin", gva, *options], wanted)

    def look(self):
        """Of the table that the paused guest is in; says which that is."""
        cr3 = int(self._daemon.expect(["vm", "registers", "spin"], r"cr3 +(0x\w+)"), 16)
        table = "one"
        if self._settings["pti"] == "on":
            table = "user" if cr3 & USER_TABLE else "kernel"
        of_kernel, of_user = table != "user", table != "kernel"
        self._walk(self._data_gva, self._data_gpa, "--user", "--access=write")
        self._walk(self._data_gva, None, "--user", "--access=fetch")
        # The kernel's table maps user memory, but lets nobody execute it.
        self._walk(self._code_gva, self._code_gpa if of_user else None, "--user", "--access=fetch")
        # The user's table does not map the kernel.
        self._walk(self._text_gva, self._text_gpa if of_kernel else None, "--access=fetch")
        self._walk(self._text_gva, None, "--access=fetch", "--user")
        self._daemon.expect(["vm", "read-memory", "spin", self._data_gpa, "--size=8"],
                            " ".join(f"{byte:02x}" for byte in self._value.to_bytes(8, "little")))
        if of_user:
            self._daemon.expect(["spte", "spin", self._data_gva, "--space=gva", "--access=write",
                                 "--user"], "is allowed: it is 0x")
        shadowed = self._settings["tdp"] == "off"
        self._daemon.expect(["root", "list", "spin"],
                            rf"{f'0x{cr3:x}' if shadowed else '-'} +yes ")
        return table

    def instructions(self):
        return int(self._daemon.expect(["stats", "spin"], r"vcpu 0 instruction_count +(\d+)"))

    def summary(self):
        return (f"{self._data_gva} is {self._data_gpa} by pagemap, by walk and in memory; "
                f"_text at {self._text_gva} is {self._text_gpa}")


def test_inspection(context, settings):
    with Daemon(context) as daemon:
        isolation = "pti=on" if settings["pti"] == "on" else "nopti"
        daemon.call("vm", "create", "spin", context.files.kernel,
                    f"--initrd={context.initramfs}", "--memory=256M",
                    f"--vendor={settings['vendor']}", f"--tdp={settings['tdp']}",
                    f"--cmdline=console=ttyS0 demo=spin {isolation}")
        daemon.call("vm", "start", "spin")
        inspection = Inspection(daemon, settings)
        missing = {"user", "kernel"} if settings["pti"] == "on" else {"one"}
        last = 0
        for _ in range(1000):
            daemon.call("vm", "pause", "spin")
            missing.discard(inspection.look())
            before, last = last, inspection.instructions()
            if last < before:
                raise Failure(f"{last} instructions, where there had been {before} before")
            if not missing:
                return inspection.summary()
            daemon.call("vm", "resume", "spin")
        raise Failure(f"in 1000 looks the guest was never in the table of: {missing}")


def test_virtio(context, _):
    """A disk, random numbers and a console by virtio. The disk's file must stay as it is."""
    with tempfile.TemporaryDirectory() as directory:
        disk, initramfs = os.path.join(directory, "disk"), os.path.join(directory, "initramfs")
        contents = os.urandom(16 << 20)
        with open(disk, "wb") as file:
            file.write(contents)
        write_initramfs(context, initramfs,
                        ["virtio_mmio", "virtio_blk", "virtio_console", "virtio_rng"])
        words = context.run_words("demo=disk", [f"--disk={disk}", "--virtio=console,rng"], initramfs)
        digest = hashlib.sha256(contents).hexdigest()
        context.run_guest(words, [f"demo: disk {digest}", "demo: typed 'hello'", "demo: disk done"],
                          ("demo: type a line", "hello\n"))
        with open(disk, "rb") as file:
            if file.read() != contents:
                raise Failure("the disk's file has changed")
        return "disk, console and random numbers"


def test_virtual_clock(context, _):
    """Two runs with a virtual clock, which work and then sleep for an hour: the same console and
    the same counters, to the last digit."""
    outcomes = []
    for _ in range(2):
        with Daemon(context) as daemon:
            daemon.call("vm", "create", "same", context.files.kernel,
                        f"--initrd={context.initramfs}", f"--memory={MEMORY}", "--clock=virtual",
                        "--cmdline=console=ttyS0 demo=idle")
            daemon.call("vm", "start", "same")
            with subprocess.Popen(daemon.words("vm", "console", "same"), stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT) as running:
                console = list(lines_of(running.stdout, context.progress))
            counters = re.sub(r"memory_resident_bytes.*|vcpu 0 exit.*", "",
                              daemon.call("stats", "same"))
            outcomes.append([*console, *counters.splitlines()])
    if not any(re.search(r"demo: idle done, up 36\d\d\.", line) for line in outcomes[0]):
        raise Failure("the console's end:\n" + "".join(outcomes[0][-40:]))
    for one, other in zip(*outcomes):
        if one != other:
            raise Failure(f"two runs differ:\n{one}\n{other}")
    count = re.search(r"instruction_count +(\d+)", "\n".join(outcomes[0])).group(1)
    return f"two runs of {count} instructions, with a sleep of an hour, are the same"


# -- Linux as a hypervisor

def write_initramfs(context, path, modules, with_kernel=False):
    with open(path, "wb") as file:
        file.write(linux_guest.make_initramfs(context.files, context.programs.in_guest, modules,
                                              with_kernel))


NESTED = ["hello from 16-bit mode", "hello from 32-bit mode with paging", "hello from 64-bit mode",
          "vmm: slots as they should be", "vmm: done", "demo: kvm done", "reboot: Power down"]


def test_kvm(context, settings):
    """Debian's KVM in the guest runs programs of ours, and Linux."""
    parameter = "ept" if settings["module"] == "kvm_intel" else "npt"
    with tempfile.TemporaryDirectory() as directory:
        initramfs = os.path.join(directory, "initramfs")
        write_initramfs(context, initramfs, [settings["module"]], with_kernel=True)
        words = context.run_words(
            f"demo=kvm {settings['module']}.{parameter}={settings[parameter]}",
            [f"--vendor={settings['module'].removeprefix('kvm_')}", f"--tdp={settings['tdp']}",
             f"--cpus={settings['cpus']}"], initramfs)
        console = context.run_guest(words, [*NESTED, f", {settings['cpus']} processors,"])
    # The guest's guest prints its own first messages, without time.
    nested = console[console.find("hello from 64-bit mode"):]
    if "[    0.000000] Linux version" not in nested:
        raise Failure("no first message of the guest's Linux in\n" + nested[:2000])
    return "programs in 16-bit, 32-bit and 64-bit mode, slots, and Linux to its first messages"


NESTED_VALUE = 0x7061_6765_7361_7721  # what the guest's guest writes


def look_into_nested(daemon, vm, nested_paging, place):
    """Of a vCPU that is paused in guest mode: `place` has an address of the guest's guest, linear and
    physical, and that of the guest's memory where it lies."""
    linear, physical, here = place
    if nested_paging:
        # Through the tables of the guest's guest, and each address in them through the hypervisor's.
        daemon.expect(["walk", vm, linear], f"is allowed: it is {physical} ")
        daemon.expect(["walk", vm, linear], rf"\n{physical} +final address .* {here} in ")
        daemon.expect(["walk", vm, physical, "--walker=tdp_walk"], f"is allowed: it is {here} ")
        daemon.expect(["spte", vm, physical, "--mmu=guest_mmu"], "is allowed: it is 0x")
        daemon.expect(["root", "list", vm], r"guest_mmu +0x.* yes ")
    else:
        # Its hypervisor's shadow pages lead to the guest's memory at once.
        daemon.expect(["walk", vm, linear], f"is allowed: it is {here} ")
        daemon.expect(["spte", vm, linear, "--space=gva"], "is allowed: it is 0x")
    daemon.expect(["vm", "read-memory", vm, here, "--size=8"],
                  " ".join(f"{byte:02x}" for byte in NESTED_VALUE.to_bytes(8, "little")))


def test_nested_walk(context, settings):
    """A program in the guest's guest, looked at through all stages while it runs."""
    module = settings["module"]
    parameter = "ept" if module == "kvm_intel" else "npt"
    with tempfile.TemporaryDirectory() as directory, Daemon(context) as daemon:
        initramfs = os.path.join(directory, "initramfs")
        write_initramfs(context, initramfs, [module])
        daemon.call("vm", "create", "deep", context.files.kernel, f"--initrd={initramfs}",
                    "--memory=256M", f"--vendor={module.removeprefix('kvm_')}",
                    f"--tdp={settings['tdp']}", "--cmdline=console=ttyS0 demo=nested-spin "
                    f"{module}.{parameter}={settings[parameter]}")
        daemon.call("vm", "start", "deep")
        told = daemon.await_lines("deep", r"vmm: linear (\w+) physical (\w+) here (\w+)")[0]
        place = [f"0x{int(address, 16):x}" for address in told.groups()]
        for _ in range(1000):
            daemon.call("vm", "pause", "deep")
            if re.search("guest mode +yes", daemon.call("nested", "show", "deep")):
                look_into_nested(daemon, "deep", settings[parameter] == 1, place)
                return "the guest's guest has {} at {}, which is {} of the guest".format(*place)
            daemon.call("vm", "resume", "deep")
        raise Failure("in 1000 looks the guest's guest never ran")


def test_stack(context, settings):
    """Debian's QEMU with KVM boots Linux in the guest, and the KVM of that runs programs of ours."""
    module = settings["module"]
    if missing := linux_stack.find_missing():
        return "skipped: " + missing
    with tempfile.TemporaryDirectory() as directory:
        initramfs = os.path.join(directory, "initramfs")
        with open(initramfs, "wb") as file:
            file.write(linux_stack.make_initramfs(context.files, context.programs.in_guest, module,
                                                  settings["cpus"]))
        words = context.run_words(
            f"demo=qemu {module}.nested=1",
            [f"--vendor={module.removeprefix('kvm_')}", f"--tdp={settings['tdp']}",
             f"--cpus={settings['cpus']}"], initramfs, linux_stack.MEMORY)
        context.run_guest(words, [*linux_stack.EXPECTED,
                                  f"demo: {settings['cpus']} processors, on which KVM"])
    return "QEMU in the guest boots Linux, and KVM in that runs programs in 16, 32 and 64-bit mode"


# -- all of it

def all_cases(quick):
    cases = []
    for vendor in ["intel"] if quick else ["intel", "amd"]:
        for tdp in ["on"] if quick else ["on", "off"]:
            machine = {"vendor": vendor, "tdp": tdp}
            for cpus in [1] if quick else [1, 2]:
                cases.append(Case(test_boot, {"test": "boot", **machine, "cpus": cpus}))
            for pti in ["off"] if quick else ["off", "on"]:
                cases.append(Case(test_inspection, {"test": "inspection", **machine, "pti": pti}))
    cases.append(Case(test_virtio, {"test": "virtio"}))
    if quick:
        return cases
    cases.append(Case(test_virtual_clock, {"test": "twice", "clock": "virtual"}))
    for module, parameter in [("kvm_intel", "ept"), ("kvm_amd", "npt")]:
        for value in [1, 0]:
            for tdp, cpus in [("on", 1), ("off", 1), ("on", 2)]:
                cases.append(Case(test_kvm, {"test": "nested", "module": module, parameter: value,
                                             "tdp": tdp, "cpus": cpus}))
            for tdp in ["on", "off"]:
                cases.append(Case(test_nested_walk, {"test": "nested-walk", "module": module,
                                                     parameter: value, "tdp": tdp}))
        for tdp, cpus in [("on", 2), ("off", 1)]:
            cases.append(Case(test_stack, {"test": "stack", "module": module, "tdp": tdp,
                                           "cpus": cpus}))
    return cases


def run_case(context, case):
    """The entry of the JSON file; prints the line."""
    start = time.monotonic()
    try:
        detail, passed = case.run(context, case.settings), True
    except (Failure, linux_guest.Problem) as failure:
        detail, passed = str(failure), False
    seconds = time.monotonic() - start
    context.progress.end()
    say(f"{'ok    ' if passed else 'FAILED'}  {case.name}: {detail} ({seconds:.0f} s)")
    return {"name": case.name, "passed": passed, "seconds": round(seconds, 1),
            "settings": case.settings, "detail": detail}


def self_test(programs, files, initramfs, quick=False, only="", json_path=""):
    """Exit status 0: all held. `only`: a regular expression for names of cases."""
    context = Context(programs, files, initramfs, Progress())
    cases = [case for case in all_cases(quick) if re.search(only, case.name)]
    if not cases:
        raise linux_guest.Problem(f"--only={only}: no case has a name like that")
    results = []
    for number, case in enumerate(cases, 1):
        context.progress.begin(f"[{number}/{len(cases)}] {case.name}")
        results.append(run_case(context, case))
    passed = sum(result["passed"] for result in results)
    say(f"{passed} passed, {len(results) - passed} failed")
    if json_path:
        summary = {"kernel": os.path.basename(files.kernel), "passed": passed,
                   "failed": len(results) - passed, "cases": results}
        with open(json_path, "w", encoding="utf-8") as file:
            json.dump(summary, file, indent=1)
            file.write("\n")
    return 0 if passed == len(results) else 1
