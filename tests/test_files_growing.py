"""A file that grows in place: what is appended stays, and one run writes at a time."""

import os
from pathlib import Path

import pytest

from glmcpu import files
from glmcpu.errors import MachineError, UsageError


def test_what_is_appended_stays_and_the_next_run_goes_on(tmp_path: Path) -> None:
    target = tmp_path / "folder" / "a"
    for line in (b"one\n", b"two\n"):
        with files.growing(target) as out:
            out.append(line)
    assert target.read_bytes() == b"one\ntwo\n"
    assert [p.name for p in target.parent.iterdir() if not p.name.endswith("-lock")] == ["a"]


def test_the_end_of_a_growing_file_can_be_cut_away(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one\ntw")
    with files.growing(tmp_path / "a") as out:
        out.cut(4)
        out.append(b"two\n")
    assert (tmp_path / "a").read_bytes() == b"one\ntwo\n"


def test_an_error_of_the_work_is_no_error_of_the_growing_file(tmp_path: Path) -> None:
    def append_and_raise() -> None:
        with files.growing(tmp_path / "a") as out:
            out.append(b"one\n")
            raise OSError("of another file")

    with pytest.raises(OSError, match="of another file"):
        append_and_raise()
    assert (tmp_path / "a").read_bytes() == b"one\n"


def test_two_do_not_grow_one_file(tmp_path: Path) -> None:
    busy = pytest.raises(MachineError, match="another glmcpu is writing it")
    with files.growing(tmp_path / "a"), busy, files.growing(tmp_path / "a"):
        pass


def test_a_folder_does_not_grow(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"), files.growing(tmp_path):
        pass


def test_it_reaches_the_disk_now_and_then_and_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[float] = []
    now = [0.0]
    monkeypatch.setattr("glmcpu.files.time.monotonic", lambda: now[0])
    monkeypatch.setattr("glmcpu.files._sync_folder", lambda folder: None)
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(now[0]))
    with files.growing(tmp_path / "a") as out:
        for _ in range(12):
            now[0] += 1
            out.append(b"x")
    assert synced == [5, 10, 12]
