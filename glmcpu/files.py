"""The one door to the file system: every open for reading and every write of the package goes through here.

Reading refuses what is not a regular file before a read can block (a FIFO, a device). Writing is whole or not at all:

    temporary file beside the target -> write -> fsync -> rename over the target -> fsync of the folder

so a crash, a full disk or Ctrl-C leaves what was there before. The temporary file is locked while its writer lives;
a later run removes those whose writer is gone, and never one that is still being written. Only a `Growing` file, a log
of finished work, is written in place: what is appended stays, whatever comes after.
"""

import contextlib
import errno
import io
import os
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from glmcpu.errors import DataError, GlmcpuError, MachineError, UsageError, shown
from glmcpu.memory import megabytes

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

SYNC_S = 5.0  # a growing file loses no more than this to a power cut
_PARTIAL = ".glmcpu-partial"


def open_regular(path: str | os.PathLike[str]) -> io.FileIO:
    """Opens a regular file for reading, unbuffered.

    Raises DataError when there is none or it is something else (a folder, a device), MachineError when the
    system refuses.
    """
    name = shown(path)
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{name}: no such file") from error
    except IsADirectoryError as error:
        raise DataError(f"{name}: is a folder, not a file") from error
    except (OSError, ValueError) as error:
        raise MachineError(f"{name}: cannot be opened: {reason(error)}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DataError(f"{name}: is not a regular file; give the file itself, not a folder, pipe or device")
    return io.FileIO(descriptor, "rb", closefd=True)


def expanded(path: str) -> Path:
    """`path` with a leading ~ or ~user replaced by that home folder; raises UsageError where there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{shown(path)}: no such home folder; give the whole path") from error


def exists(path: Path) -> bool:
    """Whether something is at `path`; raises MachineError when the system does not let us look."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) == errno.ENAMETOOLONG:
            return False
        raise MachineError(f"{shown(path)}: cannot be looked up: {reason(error)}; check its folder") from error
    return True


def read_bytes(path: str | os.PathLike[str], limit: int) -> bytes:
    """The whole file; raises DataError when it is larger than `limit` bytes."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise DataError(f"{shown(path)}: {size:,} bytes, and at most {limit:,} are accepted")
        chunks = []
        while chunk := file.read(1 << 20):
            chunks.append(chunk)
            if sum(map(len, chunks)) > limit:
                raise DataError(f"{shown(path)}: grows while it is read; wait for its writer")
        return b"".join(chunks)


def reason(error: BaseException) -> str:
    """The system's own words for a failure, without number or path."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def require_space(folder: Path, needed_bytes: int, what: str) -> None:
    """Raises MachineError when the disk of `folder` has less room than `what` needs."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise MachineError(
            f"{shown(folder)}: no space for {what}: {megabytes(needed_bytes)} needed, {megabytes(free)} free; "
            "free some, or choose a folder on another disk"
        )


@contextlib.contextmanager
def atomic_write(target: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file object whose content replaces `target` when the block ends well, and is thrown away when it does not.

    Raises MachineError when the system refuses (no space, no permission, another run is writing the same
    target) and UsageError when `target` is a folder or a device. The mode is 0666 less the umask, as for any new file.
    """
    path = Path(os.path.realpath(target))
    name = shown(path)
    _require_replaceable(path, name)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_PARTIAL}")
    with _explained(name):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _claim(path):
            _remove_abandoned(path)
            try:
                with _open_new(partial) as file:
                    _lock(file.fileno())
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(partial, path)
                _sync_folder(path.parent)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(partial)
                raise


class Growing:
    """A file in place that grows by what is appended, each time by all of it or by nothing; `growing` opens one."""

    def __init__(self, descriptor: int, name: str) -> None:
        self._descriptor, self._name = descriptor, name
        self._synced_s = time.monotonic()

    def cut(self, size_bytes: int) -> None:
        """Forgets what stands behind the first `size_bytes`."""
        with _explained(self._name):
            os.ftruncate(self._descriptor, size_bytes)

    def append(self, data: bytes) -> None:
        """Writes `data` at the end; what came of a write that fails is taken away again."""
        with _explained(self._name):
            before = os.fstat(self._descriptor).st_size
            try:
                while data:
                    data = data[os.write(self._descriptor, data) :]
            except BaseException:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._descriptor, before)
                raise
        if time.monotonic() - self._synced_s >= SYNC_S:
            self.sync()

    def sync(self) -> None:
        """Returns when all that was appended is on the disk."""
        with _explained(self._name):
            os.fsync(self._descriptor)
        self._synced_s = time.monotonic()


@contextlib.contextmanager
def growing(target: str | os.PathLike[str]) -> Iterator[Growing]:
    """Opens a file to append to it, one that is there or a new one; no other run writes it meanwhile.

    Raises MachineError and UsageError as `atomic_write` does.
    """
    path = Path(os.path.realpath(target))
    name = shown(path)
    _require_replaceable(path, name)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with contextlib.ExitStack() as stack:
        with _explained(name):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_claim(path))
            descriptor = os.open(path, flags | getattr(os, "O_CLOEXEC", 0), 0o666)
            stack.callback(os.close, descriptor)
            _sync_folder(path.parent)
        file = Growing(descriptor, name)
        try:
            yield file
        finally:
            file.sync()


def write_text(target: str | os.PathLike[str], text: str) -> None:
    """Writes a small UTF-8 file, whole or not at all."""
    with atomic_write(target) as file:
        file.write(text.encode("utf-8", "surrogatepass"))


def remove(path: Path) -> None:
    """Deletes a file; raises MachineError when the system refuses."""
    try:
        os.unlink(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise MachineError(f"{shown(path)}: cannot be removed: {reason(error)}") from error


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Makes what the system says of a write a MachineError."""
    try:
        yield
    except GlmcpuError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise MachineError(f"{name}: no space left to write it; free some and run again") from error
        raise MachineError(f"{name}: cannot be written: {reason(error)}; choose another place") from error


def _require_replaceable(path: Path, name: str) -> None:
    """Raises UsageError for a folder or a device: a rename would put a plain file in its place."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return  # nothing there, or the write itself says what is wrong
    if stat.S_ISDIR(mode):
        raise UsageError(f"{name}: is a folder; name a file in it")
    if not stat.S_ISREG(mode):
        raise UsageError(f"{name}: is not a regular file, and only such a one is replaced; name another")


@contextlib.contextmanager
def _claim(path: Path) -> Iterator[None]:
    """Holds the right to write `path`, so that two runs never write one target at once."""
    lock = path.with_name(f".{path.name}.glmcpu-lock")
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor, ours = os.open(lock, flags | getattr(os, "O_CLOEXEC", 0), 0o666), True
    try:
        ours = _lock(descriptor)
        if not ours:
            raise MachineError(f"{shown(path)}: another glmcpu is writing it; wait for that one to end")
        yield
    finally:
        try:
            if ours and sys.platform != "win32":  # Windows cannot unlink an open file; an empty lock file stays there
                with contextlib.suppress(OSError):
                    os.unlink(lock)
        finally:
            os.close(descriptor)


def _open_new(path: Path) -> BinaryIO:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(path, flags | getattr(os, "O_CLOEXEC", 0), 0o666), "w+b")


def _remove_abandoned(path: Path) -> None:
    """Deletes temporary files of earlier runs that were killed; a live writer's is locked and stays."""
    for leftover in path.parent.glob(f".{_glob_escape(path.name)}.*{_PARTIAL}"):
        with contextlib.suppress(OSError):
            with open(leftover, "r+b") as file:
                abandoned = _lock(file.fileno())
            if abandoned:
                os.unlink(leftover)


def _glob_escape(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _lock(descriptor: int) -> bool:
    """Takes the file's advisory lock without waiting; False when another process holds it."""
    try:
        if sys.platform == "win32":
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # A file system without locks (some NFS) must not stop the work.
        return error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
    return True


def _sync_folder(folder: Path) -> None:
    """Makes a rename or unlink durable; Windows offers nothing of the kind for folders."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
