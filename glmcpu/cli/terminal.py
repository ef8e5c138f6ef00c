"""What the command line may assume of a console: nothing. Text goes out as UTF-8, harmless, and never as a traceback.

    stdout   results only (answers, lists); a failure to write there is an error, a closed pipe ends quietly
    stderr   all else: notes, progress, errors; a failure to write there is ignored

A model can emit every character, escape sequences too, which could retitle a window or fill the clipboard. `visible`
stands between its text and the console: control characters become their pictures, and marks that reverse the order of
a line are dropped. Line ends and tabs stay.
"""

import contextlib
import errno
import io
import os
import shutil
import sys
import time
from typing import Any, TextIO

from glmcpu.errors import MachineError, printable
from glmcpu.files import reason

REDRAW_S = 0.1  # between two redrawings of a status line
NOTE_S = 1.0  # between two lines of progress where there is no terminal

_PICTURES = {code: 0x2400 + code for code in range(0x20) if code not in (0x09, 0x0A)} | {0x7F: 0x2421}
_C1_CONTROLS = dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
_BIDI_CONTROLS = dict.fromkeys([0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)])
_VISIBLE: dict[int, int | None] = {**_PICTURES, **_C1_CONTROLS, **_BIDI_CONTROLS}


def use_utf8() -> None:
    """Makes the three streams speak UTF-8 whatever the locale or code page; what is no text is replaced."""
    for stream, errors in ((sys.stdin, "replace"), (sys.stdout, "backslashreplace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors=errors)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a person reads or writes this stream; a closed one (None) is no terminal."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False


def visible(text: str) -> str:
    """`text` without characters that command a terminal."""
    return text.translate(_VISIBLE)


def write(text: str) -> None:
    """Writes to stdout at once. Raises MachineError when that fails, BrokenPipeError when nobody reads any more."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        if sys.platform == "win32" and error.errno == errno.EINVAL:  # what Windows says of a closed pipe
            raise BrokenPipeError from error
        raise MachineError(f"standard output: cannot be written: {reason(error)}; write to another place") from error


def write_line(text: str) -> None:
    """Writes a line to stdout."""
    write(text + "\n")


def note(text: str) -> None:
    """Writes a line about the work to stderr."""
    _write_error(f"glmcpu: {text}\n")


def size(n_bytes: int) -> str:
    """A number of bytes for a person: "3,912.4 MB", "7.3 kB"."""
    return f"{n_bytes / 1e6:,.1f} MB" if n_bytes >= 100_000 else f"{n_bytes / 1e3:,.1f} kB"


def left(seconds: float) -> str:
    """The time left for a person: "40 s left", "3 min left", "1 h 5 min left"."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s left"
    return f"{minutes} min left" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min left"


def silence_stdout() -> None:
    """Points stdout nowhere, so that Python's own flush at exit cannot fail again."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


class StatusLine:
    """One line on stderr that is rewritten in place; nothing at all where stderr is no terminal.

    Use it as a context manager: the line is gone when the block ends, whatever ended it.
    """

    def __init__(self) -> None:
        self.active = is_terminal(sys.stderr) and os.environ.get("TERM") != "dumb"
        self._shown = 0
        self._shown_s = 0.0

    def __enter__(self) -> "StatusLine":
        return self

    def __exit__(self, *_: Any) -> None:
        self.clear()

    def show(self, text: str) -> None:
        """Shows `text` cut to the terminal's width; more often than every REDRAW_S it does nothing."""
        now = time.monotonic()
        if not self.active or (self._shown and now - self._shown_s < REDRAW_S):
            return
        # One column stays free, or the cursor would wrap and the line could not be taken back.
        columns = shutil.get_terminal_size().columns or 80  # Python 3.10 says 0 where the size is unknown
        line = printable(text, 1000)[: max(1, columns - 1)]
        _write_error(f"\r{line}{' ' * (self._shown - len(line))}")
        self._shown, self._shown_s = len(line), now

    def clear(self) -> None:
        """Takes the line away."""
        if self._shown:
            _write_error(f"\r{' ' * self._shown}\r")
            self._shown = 0


class ByteProgress:
    """The progress of a long job: `(stage, done_bytes, total_bytes)` as a bar with the time left, or as quiet lines.

    Without a terminal one line is written for every 10 % of a stage, and none within a second of another, so that a
    log stays short.
    """

    def __init__(self, line: StatusLine) -> None:
        self._line = line
        self._stage = ""
        self._began_s = self._began_share = 0.0
        self._tenth = 0
        self._noted_s = time.monotonic()

    def __call__(self, stage: str, done_bytes: int, total_bytes: int) -> None:
        now = time.monotonic()
        share = min(1.0, done_bytes / total_bytes) if total_bytes else 0.0
        if stage != self._stage:
            self._stage, self._began_s, self._began_share, self._tenth = stage, now, share, int(10 * share)
        amount = self._amount(done_bytes, total_bytes)
        if self._line.active:
            bar = ("#" * int(20 * share)).ljust(20, ".")
            self._line.show(f"{stage} [{bar}] {share:4.0%}  {amount}  {self._left(share)}")
        elif int(10 * share) > self._tenth and now - self._noted_s >= NOTE_S:
            self._tenth, self._noted_s = int(10 * share), now
            note(f"{printable(stage)}: {10 * self._tenth} % ({amount})")

    def _amount(self, done_bytes: int, total_bytes: int) -> str:
        return f"{done_bytes / 1e6:,.0f} of {total_bytes / 1e6:,.0f} MB"

    def _left(self, share: float) -> str:
        elapsed_s = time.monotonic() - self._began_s
        if share <= self._began_share or elapsed_s < 1:
            return ""
        left_s = round(elapsed_s * (1 - share) / (share - self._began_share))
        return f"{left_s // 60}:{left_s % 60:02d} left"


class Counted(ByteProgress):
    """The progress of something that is not bytes."""

    def __init__(self, line: StatusLine, unit: str) -> None:
        super().__init__(line)
        self._unit = unit

    def _amount(self, done: int, total: int) -> str:
        return f"{done:,} of {total:,} {self._unit}"


def _write_error(text: str) -> None:
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text)
            sys.stderr.flush()
