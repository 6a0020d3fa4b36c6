#!/usr/bin/env python3
"""Runs edge guests on a machine and compares what becomes of them with what their sources expect.

  guests/check_edges.py --machine=pagesaw|qemu [--vendor=intel|amd] [NAME...]

Build //guests/edge first (and, for pagesaw, //control:pagesawctl). QEMU is a second opinion: where it
differs, the manuals decide.
"""
import argparse
import pathlib
import re
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
SECONDS = 3


def expectation(source):
    text = source.read_text()
    expect = re.search(r"^// expect: (.+)$", text, re.M).group(1)
    console = "".join(line + "\n" for line in re.findall(r"^// console: (.+)$", text, re.M))
    cpus = re.search(r"^// cpus: (\d+)$", text, re.M)
    return expect, console, cpus.group(1) if cpus else "1"


def command(machine, vendor, image, cpus):
    if machine == "qemu":
        return ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot",
                "-cpu", "max", "-smp", cpus, "-m", "128", "-device", "isa-debug-exit,iobase=0xf4,iosize=4",
                "-kernel", str(image)]
    return [str(ROOT / "bazel-bin/control/pagesawctl"), "run", str(image), "--vendor=" + vendor,
            "--cpus=" + cpus, "--memory=128M", f"--time_limit={SECONDS}s"]


def run(arguments):
    """Returns (`exit N`, `runs` or `ends`, its output, its words)."""
    begin = time.monotonic()
    process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    try:
        output, words = process.communicate(timeout=SECONDS + 5 if "run" in arguments else SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        output, words = process.communicate()
        return "runs", output, words
    if process.returncode == 124 and time.monotonic() - begin >= SECONDS:
        return "runs", output, words
    return f"exit {process.returncode}", output, words


def judge(machine, expect, console, outcome, output, words):
    if console and output.decode(errors="replace") != console:
        return f"printed {output!r}"
    if expect == "any" or (expect == "stops" and machine == "qemu"):
        return None
    if expect in ("shutdown", "stops"):
        # QEMU without reboot ends with 0 on a triple fault; pagesawctl with 1 and a sentence.
        ended = outcome == "exit 0" if machine == "qemu" else outcome == "exit 1" and words
        return None if ended else outcome
    return None if outcome == expect else outcome


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--machine", choices=["pagesaw", "qemu"], required=True)
    parser.add_argument("--vendor", choices=["intel", "amd"], default="intel")
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    names = options.names or sorted(p.stem for p in (ROOT / "guests/edge").glob("*.S"))
    wrong = 0
    for name in names:
        expect, console, cpus = expectation(ROOT / "guests/edge" / f"{name}.S")
        image = ROOT / "bazel-bin/guests/edge" / f"{name}.elf"
        outcome, output, words = run(command(options.machine, options.vendor, image, cpus))
        problem = judge(options.machine, expect, console, outcome, output, words)
        wrong += problem is not None
        print(f"{name:16} expect {expect:10} {'ok (' + outcome + ')' if problem is None else 'WRONG: ' + problem}",
              flush=True)
        if problem is not None and words:
            print("    " + words.decode(errors="replace").strip().replace("\n", "\n    "))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
