"""Tests of linux_self_test and linux_console, without a guest."""

import contextlib
import io
import json
import os
import tempfile
import types
import unittest
from unittest import mock

import linux_console
import linux_guest
import linux_self_test
from linux_self_test import Case, Failure


class Terminal(io.StringIO):
    def isatty(self):
        return True


class LinesTest(unittest.TestCase):
    def setUp(self):
        reader, self.writer = os.pipe()
        self.stream = os.fdopen(reader, "rb")
        self.addCleanup(self.stream.close)

    def test_gives_lines_and_what_is_left_at_the_end(self):
        os.write(self.writer, b"one\ntwo\nrest")
        os.close(self.writer)
        progress = linux_console.Progress(Terminal())
        self.assertEqual(list(linux_console.lines_of(self.stream, progress)),
                         ["one\n", "two\n", "rest"])

    def test_silence_is_a_problem_that_has_the_last_words(self):
        os.write(self.writer, b"one\nthe last words")
        lines = linux_console.lines_of(self.stream, linux_console.Progress(), silence=0.01)
        self.assertEqual(next(lines), "one\n")
        with self.assertRaisesRegex(linux_guest.Problem, "silent for 0.01 s.*the last words"):
            next(lines)
        os.close(self.writer)


class ProgressTest(unittest.TestCase):
    def test_shows_what_is_done_and_the_last_line(self):
        terminal = Terminal()
        progress = linux_console.Progress(terminal)
        progress.begin("[1/2] boot")
        progress.note("Linux\x1b[0m version\n")
        progress.note("\n")
        progress.show()
        self.assertIn("[1/2] boot: 0 s: Linux[0m version", terminal.getvalue())

    def test_is_silent_without_a_terminal(self):
        stream = io.StringIO()
        progress = linux_console.Progress(stream)
        progress.begin("x")
        progress.show()
        progress.end()
        self.assertEqual(stream.getvalue(), "")


class SelfTestTest(unittest.TestCase):
    FILES = types.SimpleNamespace(kernel="/boot/vmlinuz-6.1")

    def run_cases(self, cases, **options):
        out = io.StringIO()
        with mock.patch.object(linux_self_test, "all_cases", lambda quick: cases), \
                contextlib.redirect_stdout(out):
            status = linux_self_test.self_test(None, self.FILES, "", **options)
        return status, out.getvalue().splitlines()

    def test_every_case_is_a_line_and_an_entry(self):
        def fails(_, settings):
            raise Failure("no " + settings["vendor"])

        cases = [Case(lambda *_: "fine", {"test": "boot", "vendor": "amd", "cpus": 2}),
                 Case(fails, {"test": "boot", "vendor": "intel", "pti": "on"})]
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "results")
            status, lines = self.run_cases(cases, json_path=path)
            with open(path, encoding="utf-8") as file:
                results = json.load(file)
        self.assertEqual(status, 1)
        self.assertEqual(lines, ["ok      boot --vendor=amd --cpus=2: fine (0 s)",
                                 "FAILED  boot --vendor=intel pti=on: no intel (0 s)",
                                 "1 passed, 1 failed"])
        self.assertEqual((results["passed"], results["failed"]), (1, 1))
        self.assertEqual([case["passed"] for case in results["cases"]], [True, False])
        self.assertEqual(results["cases"][1]["settings"],
                         {"test": "boot", "vendor": "intel", "pti": "on"})

    def test_runs_those_cases_only(self):
        cases = [Case(lambda *_: "fine", {"test": "boot", "cpus": cpus}) for cpus in (1, 2)]
        status, lines = self.run_cases(cases, only="cpus=2")
        self.assertEqual((status, lines[-1]), (0, "1 passed, 0 failed"))
        with self.assertRaisesRegex(linux_guest.Problem, "--only=cpus=3: no case"):
            self.run_cases(cases, only="cpus=3")

    def test_names_tell_cases_apart(self):
        names = [case.name for case in linux_self_test.all_cases(quick=False)]
        self.assertEqual(len(names), len(set(names)))
        for nested in ("kvm_intel ept=1", "kvm_intel ept=0", "kvm_amd npt=1", "kvm_amd npt=0"):
            for machine in ("--tdp=on --cpus=1", "--tdp=off --cpus=1", "--tdp=on --cpus=2"):
                self.assertIn(f"nested {nested} {machine}", names)


if __name__ == "__main__":
    unittest.main()
