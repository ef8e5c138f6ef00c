"""Log lines on stderr from a thread of their own: where nobody reads them, they are dropped and nobody waits.

A pipe that is full would otherwise stop the thread that logs, which in a server is the one that answers everybody.
"""

import contextlib
import io
import logging
import os
import queue
import sys
import threading

LINES = 1000  # wait to be written; more are dropped
_END_S = 0.5


class LogLines(logging.Handler):
    """Writes each record as a bare line; `close` writes what is left, as far as somebody reads it."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: queue.Queue[str | None] = queue.Queue(LINES)
        self._writer = threading.Thread(target=self._write, name="glmcpu log", daemon=True)
        self._writer.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Takes a record; never waits."""
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(self.format(record))

    def close(self) -> None:
        """Ends the thread, unless it waits for a reader."""
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(None)
            self._writer.join(_END_S)
        super().close()

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            # Past sys.stderr's buffer, whose lock the interpreter wants when it ends. It may be closed, or no file.
            with contextlib.suppress(OSError, AttributeError, ValueError, io.UnsupportedOperation):
                data = f"{line}\n".encode(errors="backslashreplace")
                while data:
                    data = data[os.write(sys.stderr.fileno(), data) :]
