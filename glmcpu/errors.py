"""The kinds of failure a user can meet, and the exit code each has on the command line.

Every message is one sentence of three facts: what failed (with the file and the numbers), what was expected, what to do
next. A failure that is none of these kinds is a bug of ours and exits with 1.
"""

PATH_CHARS = 120  # so that a path, the numbers and the advice fit into a line of 300


class GlmcpuError(Exception):
    """Any failure glmcpu explains itself; `exit_code` is what the command line returns."""

    exit_code = 1


class UsageError(GlmcpuError, ValueError):
    """The request itself is wrong: an option out of range, an unknown name."""

    exit_code = 2


class DataError(GlmcpuError, ValueError):
    """A file or an input is not what it should be: a broken checkpoint, a missing tensor, ids out of range."""

    exit_code = 3


class MachineError(GlmcpuError, OSError):
    """The machine refuses: no space, no memory, no permission, a file changed while it was read."""

    exit_code = 4


class NetworkError(GlmcpuError, OSError):
    """The hub cannot be reached or answers something else than the file."""

    exit_code = 5


class BusyError(GlmcpuError):
    """The engine has as many requests as it may; the same request can succeed later."""

    exit_code = 4


class Notice(UserWarning):
    """Something the user should know that stops nothing."""


class ContextWarning(Notice):
    """The conversation outgrew the context: the oldest rounds were left out of the prompt."""


def printable(text: object, limit: int = 120) -> str:
    """`text` for an error line: control and bidirectional characters escaped, at most `limit` characters.

    Names out of a checkpoint are chosen by its publisher, who must not be able to write to the user's terminal.
    """
    escaped = _escaped(str(text)[: limit + 1])
    return escaped if len(escaped) <= limit else escaped[: limit - 1] + "…"


def shown(path: object) -> str:
    """A path for an error line: escaped, and of a long one the end, which has the file's name."""
    escaped = _escaped(str(path)[-PATH_CHARS - 1 :])
    return escaped if len(escaped) <= PATH_CHARS else "…" + escaped[1 - PATH_CHARS :]


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
