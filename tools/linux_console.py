"""Follows the consoles of guests: sees to it that they go on, and shows on a terminal that they do."""

import os
import select
import shutil
import sys
import time

from linux_guest import Problem

# A guest that prints nothing for as long has come to a stop. How fast the host is does not matter
# much: a guest that works prints every few seconds on an idle one.
SILENCE_SECONDS = 600


class Progress:
    """A line on stderr, if that is a terminal, with what is done now and what a guest printed last."""

    def __init__(self, stream=None):
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._title = ""
        self._last = ""
        self._start = 0.0

    def begin(self, title):
        self._title, self._last, self._start = title, "", time.monotonic()
        self.show()

    def note(self, line):
        text = "".join(c for c in line if c.isprintable()).strip()
        if text:
            self._last = text

    def show(self):
        if not self._terminal:
            return
        seconds = time.monotonic() - self._start
        width = shutil.get_terminal_size().columns - 1
        text = f"{self._title}: {seconds:.0f} s: {self._last}"[:width]
        self._stream.write(f"\r\033[K{text}")
        self._stream.flush()

    def end(self):
        if self._terminal:
            self._stream.write("\r\033[K")
            self._stream.flush()


def lines_of(stream, progress, silence=SILENCE_SECONDS):
    """The lines of a pipe, each as soon as it is there. Problem if none comes for `silence` seconds."""
    rest = b""
    last = time.monotonic()
    while True:
        ready, _, _ = select.select([stream.fileno()], [], [], min(1, silence))
        if ready:
            data = os.read(stream.fileno(), 1 << 16)
            if not data:
                break
            last = time.monotonic()
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                text = line.decode(errors="replace") + "\n"
                progress.note(text)
                yield text
        elif time.monotonic() - last >= silence:
            raise Problem(f"the console was silent for {silence} s; its last words: "
                          f"{rest[-200:].decode(errors='replace')!r}")
        progress.show()
    if rest:
        yield rest.decode(errors="replace")
