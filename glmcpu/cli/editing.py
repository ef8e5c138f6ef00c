"""Line editing and the history of typed lines, where the system has the readline library (Linux, macOS).

The Windows console edits lines and remembers them itself, so there this does nothing. Typed lines are private: the file
is readable by its owner only, holds the newest lines, and no trouble with it ever disturbs a conversation.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from glmcpu import files, limits
from glmcpu.errors import GlmcpuError

REMEMBERED_LINES = 1000
_HARMLESS = (GlmcpuError, OSError, ValueError, RuntimeError)


@contextlib.contextmanager
def line_editing(history: Path) -> Iterator[None]:
    """Within the block input() edits lines and knows the earlier ones, which are in `history` again afterwards."""
    try:
        import readline
    except ImportError:
        yield
        return
    if "libedit" not in (readline.__doc__ or ""):
        # Bytes above 127 are letters also in the C locale, and a pasted tab is a tab.
        for setting in ("set input-meta on", "set output-meta on", "set convert-meta off", "tab: self-insert"):
            readline.parse_and_bind(setting)
    with contextlib.suppress(*_HARMLESS):
        _read(readline, history)
    try:
        yield
    finally:
        with contextlib.suppress(*_HARMLESS):
            _write(readline, history)


def _read(readline: Any, path: Path) -> None:
    readline.clear_history()
    if not path.is_file():
        return
    text = files.read_bytes(path, limits.CONVERSATION_BYTES).decode("utf-8", "replace")
    for line in text.split("\n")[-REMEMBERED_LINES - 1 :]:
        if line:
            _add(readline, line.replace("\0", ""))


def _add(readline: Any, line: str) -> None:
    try:
        readline.add_history(line)
    except UnicodeEncodeError:  # the C locale: hand over the bytes
        readline.add_history(line.encode().decode("ascii", "surrogateescape"))


def _write(readline: Any, path: Path) -> None:
    count = readline.get_current_history_length()
    first = max(1, count - REMEMBERED_LINES + 1)
    items = [readline.get_history_item(n) or "" for n in range(first, count + 1)]
    lines = [item.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for item in items]
    mask = os.umask(0o077)
    try:
        # A pasted text is one entry of several lines; the file has one entry a line.
        files.write_text(path, "".join(line.replace("\n", " ") + "\n" for line in lines))
    finally:
        os.umask(mask)
