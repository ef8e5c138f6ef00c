"""`glmcpu chat` with the fake model on a pseudo-terminal, and somebody who types at it (POSIX only)."""

import contextlib
import os
import select
import subprocess
import sys
import time
from pathlib import Path

FAKE = str(Path(__file__).with_name("fake_model.py"))
QUESTION, ANSWER = "用户：", "ChatGLM-6B："


class Terminal:
    """One run of the program; `shown` is everything it has written."""

    def __init__(self, home, *arguments, **env):
        import pty

        self.shown = ""
        self._bytes = b""
        self._read = 0
        self._fd, other = pty.openpty()
        environment = {**os.environ, "GLMCPU_HOME": str(home), "TERM": "xterm", "FAKE_TERMINAL": "1", **env}
        # Not pty.fork(): pytest's process may have threads, which a fork does not survive.
        self._child = subprocess.Popen(
            [sys.executable, FAKE, "chat", *arguments],
            stdin=other,
            stdout=other,
            stderr=other,
            env=environment,
            start_new_session=True,
        )
        os.close(other)

    def expect(self, text):
        """Reads until `text` has appeared after what was expected before."""
        end_s = time.monotonic() + 20
        while (place := self.shown.find(text, self._read)) < 0:
            assert time.monotonic() < end_s, f"{text!r} did not appear in {self.shown!r}"
            assert self._more(), f"ended before {text!r}: {self.shown!r}"
        self._read = place + len(text)

    def type(self, text, after=QUESTION):
        self.expect(after)
        os.write(self._fd, text.encode())

    def signal(self, number):
        """Sends a signal when the program has come to rest: one that falls just before a wait is seen only after it."""
        time.sleep(0.3)
        self._child.send_signal(number)

    def end(self):
        """The exit code, after everything was read."""
        while self._more():
            pass
        os.close(self._fd)
        try:
            return self._child.wait(10)
        finally:
            self._child.kill()

    def _more(self):
        data = b""
        if select.select([self._fd], [], [], 10)[0]:
            with contextlib.suppress(OSError):  # what Linux answers when the other side is gone
                data = os.read(self._fd, 1 << 16)
        self._bytes += data
        self.shown = self._bytes.decode("utf-8", "ignore").replace("\r\n", "\n")
        return data != b""
