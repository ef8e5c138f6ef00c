"""A write to disk where one call of the system fails, each call once: the old file or the new one, and no debris."""

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from glmcpu import files
from glmcpu.errors import MachineError

OLD, NEW = b"what was there before", b"new content" * 1000


def _write(target: Path) -> None:
    with files.atomic_write(target) as file:
        for begin in range(0, len(NEW), 4000):
            file.write(NEW[begin : begin + 4000])


def _names(folder: Path) -> list[str]:
    """What a user sees there; on Windows an empty lock file stays."""
    return sorted(p.name for p in folder.iterdir() if not (sys.platform == "win32" and p.name.endswith("-lock")))


class _Fault:
    """Lets `failing` raise at its n-th call and counts the calls."""

    def __init__(self, at: int, failure: BaseException) -> None:
        self.at, self.failure, self.calls = at, failure, 0

    def before(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls == self.at:
                raise self.failure
            return call(*args, **kwargs)

        return wrapped


class _FaultyFile:
    """A file object whose writes can fail; everything else is the real one's."""

    def __init__(self, file: Any, fault: _Fault) -> None:
        self._file = file
        self.write = fault.before(file.write)
        self.flush = fault.before(file.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_FaultyFile":
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()


CALLS = ["os.open", "os.fdopen", "os.fsync", "os.replace", "os.unlink", "file", "Path.mkdir", "Path.glob", "lock"]
FAILURES = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EIO, "Input/output error"),
    PermissionError(errno.EACCES, "Permission denied"),
    KeyboardInterrupt(),
]


@contextlib.contextmanager
def _failing(call: str, fault: _Fault, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        if call == "file":
            fdopen = os.fdopen
            patch.setattr(os, "fdopen", lambda *a, **k: _FaultyFile(fdopen(*a, **k), fault))
        elif call == "lock":
            patch.setattr(files, "_lock", fault.before(files._lock))
        else:
            owner = Path if call.startswith("Path") else os
            name = call.partition(".")[2]
            patch.setattr(owner, name, fault.before(getattr(owner, name)))
        yield


@pytest.mark.parametrize("there", [True, False], ids=["replacing", "new"])
@pytest.mark.parametrize("failure", FAILURES, ids=["full", "broken", "forbidden", "Ctrl-C"])
@pytest.mark.parametrize("call", CALLS)
def test_whatever_call_fails_the_file_is_the_old_or_the_new_one_without_debris(
    call: str, failure: BaseException, there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, reached = tmp_path / "a", 0
    for at in range(1, 50):
        target.unlink(missing_ok=True)
        if there:
            target.write_bytes(OLD)
        fault, ended = _Fault(at, failure), None
        with _failing(call, fault, monkeypatch):
            try:
                _write(target)
            except (MachineError, KeyboardInterrupt) as error:
                ended = error
        if fault.calls < at:
            break
        reached += 1
        before = OLD if there else None
        after = target.read_bytes() if target.exists() else None
        assert after in (before, NEW)
        if ended is None:
            assert after == NEW
        elif isinstance(ended, MachineError):
            assert str(ended).startswith(f"{target}: ")
            assert "\n" not in str(ended)
        if call != "os.unlink":
            assert _names(tmp_path) == (["a"] if after is not None else [])
        _write(target)  # what could not be removed goes now
        assert target.read_bytes() == NEW
        assert _names(tmp_path) == ["a"]
    assert ended is None
    assert reached or (call == "os.unlink" and sys.platform == "win32")


def test_the_content_reaches_the_disk_before_its_name_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_sync(descriptor: int) -> None:
        seen.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def note_rename(source: Any, destination: Any) -> None:
        seen.append("rename")
        replace(source, destination)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_rename)
    _write(tmp_path / "a")
    assert seen == (["file", "rename"] if sys.platform == "win32" else ["file", "rename", "folder"])


def test_a_full_disk_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MachineError, match="a: no space left to write it; free some and run again"):
        _write(tmp_path / "a")


LINES = [b"one\n", b"two and more\n", b"three\n"]


def _append(target: Path) -> None:
    with files.growing(target) as out:
        for line in LINES:
            out.append(line)


@pytest.mark.parametrize("failure", FAILURES, ids=["full", "broken", "forbidden", "Ctrl-C"])
@pytest.mark.parametrize("call", ["os.open", "os.write", "os.fsync", "os.fstat", "lock", "Path.mkdir"])
def test_whatever_call_fails_a_growing_file_has_whole_appends_and_can_go_on(
    call: str, failure: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a"
    monkeypatch.setattr(files, "SYNC_S", 0.0)
    for at in range(1, 50):
        target.write_bytes(b"zero\n")
        fault, ended = _Fault(at, failure), None
        with _failing(call, fault, monkeypatch):
            try:
                _append(target)
            except (MachineError, KeyboardInterrupt) as error:
                ended = error
        if fault.calls < at:
            break
        left = target.read_bytes()
        assert left in [b"".join([b"zero\n", *LINES[:n]]) for n in range(4)]
        assert ended or left == b"".join([b"zero\n", *LINES])
        if isinstance(ended, MachineError):
            assert str(ended).startswith(f"{target}: ")
        _append(target)
        assert target.read_bytes() == left + b"".join(LINES)
    assert at > 1
    assert ended is None


def test_half_of_a_write_is_taken_away_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write

    def half(descriptor: int, data: bytes) -> int:
        if len(data) < 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[: len(data) // 2])

    with files.growing(tmp_path / "a") as out:
        out.append(b"one\n")
        monkeypatch.setattr(os, "write", half)
        with pytest.raises(MachineError, match="a: no space left"):
            out.append(b"two and more\n")
    assert (tmp_path / "a").read_bytes() == b"one\n"
