"""Reading never blocks; writing is whole or not at all, whichever call of the system fails."""

import contextlib
import errno
import io
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from glmcpu import files
from glmcpu.errors import DataError, MachineError, UsageError

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX files")
OLD, NEW = b"what was there before", b"new content" * 1000


def _write(target: Path, content: bytes = NEW) -> None:
    with files.atomic_write(target) as file:
        for begin in range(0, len(content), 4000):
            file.write(content[begin : begin + 4000])


def _write_and_raise(target: Path, failure: type[BaseException]) -> None:
    with files.atomic_write(target) as file:
        file.write(NEW)
        raise failure


def _names(folder: Path) -> list[str]:
    """What a user sees there; on Windows an empty lock file stays."""
    return sorted(p.name for p in folder.iterdir() if not (sys.platform == "win32" and p.name.endswith("-lock")))


# --- reading ---


def test_a_regular_file_is_read_also_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(NEW)
    with files.open_regular(tmp_path / "a") as file:
        assert file.read() == NEW
    assert files.read_bytes(str(tmp_path / "a"), len(NEW)) == NEW
    if sys.platform != "win32":
        (tmp_path / "link").symlink_to(tmp_path / "a")
        assert files.read_bytes(tmp_path / "link", 1 << 20) == NEW


def test_a_file_above_the_limit_is_refused_with_both_numbers(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(NEW)
    with pytest.raises(DataError, match="a: 11,000 bytes, and at most 10,999 are accepted"):
        files.read_bytes(tmp_path / "a", len(NEW) - 1)


def test_a_file_that_grows_beyond_the_limit_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(OLD)
    endless = io.BytesIO(b"x" * (3 << 20))
    endless.fileno = lambda: os.open(tmp_path / "a", os.O_RDONLY)  # type: ignore[method-assign]
    monkeypatch.setattr(files, "open_regular", lambda path: endless)
    with pytest.raises(DataError, match="grows while it is read"):
        files.read_bytes(tmp_path / "a", 1 << 20)


@pytest.mark.parametrize("name", ["missing", "file/below"])
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(OLD)
    with pytest.raises(DataError, match=f"{Path(name).name}: no such file"):
        files.open_regular(tmp_path / name)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises((DataError, MachineError)) as caught:
        files.open_regular(tmp_path)
    assert tmp_path.name in str(caught.value)


@posix
def test_pipes_and_devices_are_refused_before_they_can_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(DataError, match=rf"{path.name}: is not a regular file"):
            files.open_regular(path)


@posix
def test_a_socket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as server:
        server.bind("here")
        with pytest.raises((DataError, MachineError), match="here: "):
            files.open_regular("here")


def test_a_file_we_may_not_read_is_a_machine_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "secret")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(MachineError, match=r"a: cannot be opened: Permission denied$"):
        files.open_regular(tmp_path / "a")


def test_a_name_no_system_accepts_is_refused_in_printable_words(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"a\\x00b: cannot be opened") as caught:
        files.open_regular("a\0b")
    assert str(caught.value).isprintable()


def test_space_is_checked_before_the_work(tmp_path: Path) -> None:
    files.require_space(tmp_path, 1, "the model")
    with pytest.raises(MachineError, match=r"no space for the model: [\d,]+ MB needed, [\d,]+ MB free; free some"):
        files.require_space(tmp_path, 1 << 60, "the model")


# --- writing ---


def test_a_file_appears_whole_in_folders_made_for_it(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "a[1]*?.bin" if sys.platform != "win32" else tmp_path / "new" / "a[1].bin"
    with files.atomic_write(target) as file:
        file.write(NEW)
        assert not target.exists()
        file.seek(0)
        assert file.read(3) == NEW[:3]
    assert target.read_bytes() == NEW
    assert _names(target.parent) == [target.name]
    assert not list(target.parent.glob("*partial*"))


def test_a_failure_inside_the_block_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "a"
    target.write_bytes(OLD)
    for failure in (ValueError, KeyboardInterrupt, SystemExit):
        with pytest.raises(failure):
            _write_and_raise(target, failure)
        assert target.read_bytes() == OLD
        assert _names(tmp_path) == ["a"]


def test_text_is_utf8_and_lone_surrogates_survive(tmp_path: Path) -> None:
    files.write_text(tmp_path / "a", "你好\n\udc80")
    assert (tmp_path / "a").read_bytes() == "你好\n".encode() + b"\xed\xb2\x80"


@posix
def test_the_mode_is_that_of_any_new_file(tmp_path: Path) -> None:
    for mask, mode in ((0o022, 0o644), (0o077, 0o600), (0o002, 0o664)):
        before = os.umask(mask)
        try:
            _write(tmp_path / "a")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode


def test_a_folder_in_the_way_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder; name a file in it"):
        _write(tmp_path)
    assert _names(tmp_path) == []


@posix
def test_a_pipe_or_device_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UsageError, match="fifo: is not a regular file"):
        _write(tmp_path / "fifo")
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)
    assert _names(tmp_path) == ["fifo"]


@posix
def test_a_link_stays_and_what_it_names_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    for name, there in (("file", True), ("dangling", False)):
        if there:
            (tmp_path / "real" / name).write_bytes(OLD)
        (tmp_path / name).symlink_to(tmp_path / "real" / name)
        _write(tmp_path / name)
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / "real" / name).read_bytes() == NEW
    assert _names(tmp_path / "real") == ["dangling", "file"]


@posix
def test_a_link_planted_as_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / ".a.glmcpu-lock").symlink_to(tmp_path / "made by the link")
    with pytest.raises(MachineError, match="a: cannot be written"):
        _write(tmp_path / "a")
    assert _names(tmp_path) == [".a.glmcpu-lock"]


def test_a_parent_that_is_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(OLD)
    with pytest.raises(MachineError, match="cannot be written: "):
        _write(tmp_path / "file" / "a")


def test_a_second_writer_of_the_same_file_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "a"
    with files.atomic_write(target) as file:
        file.write(OLD)
        with pytest.raises(MachineError, match="a: another glmcpu is writing it; wait"):
            _write(target)
        _write(tmp_path / "b")
    assert target.read_bytes() == OLD
    assert _names(tmp_path) == ["a", "b"]
    _write(target)
    assert target.read_bytes() == NEW


def test_a_file_system_without_locks_does_not_stop_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    module, name = (files.msvcrt, "locking") if sys.platform == "win32" else (files.fcntl, "flock")
    monkeypatch.setattr(module, name, no_locks)
    _write(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == NEW


def test_a_writer_that_was_killed_leaves_the_old_file_and_the_next_run_cleans_up(tmp_path: Path) -> None:
    target = tmp_path / "a"
    target.write_bytes(OLD)
    code = (
        "import os, sys; from glmcpu import files\n"
        "with files.atomic_write(sys.argv[1]) as file:\n"
        "    file.write(b'x' * 5000); file.flush(); print('writing', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        with pytest.raises(MachineError, match="another glmcpu is writing"):
            _write(target)
        process.kill()
    assert target.read_bytes() == OLD
    assert [n for n in _names(tmp_path) if n.endswith("-partial")]
    (tmp_path / ".ab.0123abcd.glmcpu-partial").write_bytes(b"of another file")
    _write(target)
    assert target.read_bytes() == NEW
    assert _names(tmp_path) == [".ab.0123abcd.glmcpu-partial", "a"]


def test_removing_what_is_not_there_is_a_machine_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(OLD)
    files.remove(tmp_path / "a")
    assert _names(tmp_path) == []
    with pytest.raises(MachineError, match="a: cannot be removed: No such file"):
        files.remove(tmp_path / "a")


def test_existence_is_answered_or_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(OLD)
    assert files.exists(tmp_path / "a")
    assert not files.exists(tmp_path / "b")
    assert not files.exists(tmp_path / "a" / "below")
    with pytest.raises(MachineError, match="cannot be looked up"):
        files.exists(Path("a\0b"))
