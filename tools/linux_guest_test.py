"""Tests of linux_guest."""

import os
import tempfile
import unittest

import linux_guest


def read_archive(data):
    """(name, mode, contents, device) of each entry, by the description of the format."""
    entries = []
    at = 0
    while True:
        assert data[at:at + 6] == b"070701", at
        fields = [int(data[at + 6 + 8 * i:at + 14 + 8 * i], 16) for i in range(13)]
        name_bytes, file_bytes = fields[11], fields[6]
        name = data[at + 110:at + 110 + name_bytes - 1].decode()
        body = (at + 110 + name_bytes + 3) & ~3
        if name == "TRAILER!!!":
            return entries
        entries.append((name, fields[1], data[body:body + file_bytes], tuple(fields[9:11])))
        at = (body + file_bytes + 3) & ~3


class ArchiveTest(unittest.TestCase):
    def test_holds_what_was_added(self):
        archive = linux_guest.Archive()
        archive.directory("dev")
        archive.character_device("dev/console", 5, 1)
        archive.file("a", b"12345")
        archive.file("program", b"", executable=True)
        self.assertEqual(read_archive(archive.bytes()), [
            ("dev", 0o40755, b"", (0, 0)),
            ("dev/console", 0o20600, b"", (5, 1)),
            ("a", 0o100644, b"12345", (0, 0)),
            ("program", 0o100755, b"", (0, 0)),
        ])


class FilesTest(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.root = directory.name

    def put(self, path, data):
        path = os.path.join(self.root, path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)

    def test_takes_the_newest_kernel_and_a_static_busybox(self):
        self.put("boot/vmlinuz-6.1.0-9-cloud-amd64", b"old")
        self.put("boot/vmlinuz-6.1.0-10-cloud-amd64", b"new")
        self.put("boot/vmlinuz-6.2.0-1-amd64", b"another")
        self.put("bin/busybox", b"\x7fELF dynamic /lib64/ld-linux-x86-64.so.2")
        self.assertIsNone(linux_guest.find_files(self.root))
        self.put("usr/bin/busybox", b"\x7fELF static")
        files = linux_guest.find_files(self.root)
        self.assertEqual(os.path.basename(files.kernel), "vmlinuz-6.1.0-10-cloud-amd64")
        self.assertEqual(files.busybox, os.path.join(self.root, "usr/bin/busybox"))

    def test_loads_a_module_behind_those_that_it_needs(self):
        self.put("modules/a/one-thing.ko", b"\0license=GPL\0depends=two,three\0")
        self.put("modules/b/two.ko", b"\0depends=three\0")
        self.put("modules/b/three.ko", b"\0depends=\0")
        order = linux_guest.module_closure(["one_thing", "two"], os.path.join(self.root, "modules"))
        self.assertEqual([os.path.basename(path) for path in order],
                         ["three.ko", "two.ko", "one-thing.ko"])
        with self.assertRaisesRegex(linux_guest.Problem, "module four: there is none"):
            linux_guest.module_closure(["four"], self.root)


if __name__ == "__main__":
    unittest.main()
