"""Large pages: a file is read anew whatever its size and its file system, and stays what it was."""

import mmap
import os
import secrets
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from glmcpu import pages

on_linux = pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="only Linux has the calls")


def _written(file: BinaryIO, size: int) -> bytes:
    """Random bytes in pieces of odd sizes, some of them still in the buffer."""
    data = secrets.token_bytes(size)
    for begin in range(0, size, 99_991):
        file.write(data[begin : begin + 99_991])
    return data


@pytest.mark.parametrize("size", [0, 1, 4096, 5_000_000])
def test_a_file_read_anew_is_what_was_written_and_can_be_written_on(size: int, tmp_path: Path) -> None:
    with open(tmp_path / "file", "w+b") as file:
        data = _written(file, size)
        pages.read_anew(file)
        file.seek(0)
        assert file.read() == data
        file.write(b"more")
    assert (tmp_path / "file").read_bytes() == data + b"more"


@on_linux
def test_files_larger_than_a_window_are_read_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = list[tuple[int, int]]()

    class Mapping(mmap.mmap):
        def __new__(cls, descriptor: int, length: int, **options: Any) -> "Mapping":
            read.append((options["offset"], length))
            return super().__new__(cls, descriptor, length, **options)

    monkeypatch.setattr(pages, "_WINDOW", 1 << 20)
    monkeypatch.setattr(mmap, "mmap", Mapping)
    with open(tmp_path / "file", "w+b") as file:
        _written(file, 3_000_000)
        pages.read_anew(file)
    assert read == [(0, 1 << 20), (1 << 20, 1 << 20), (2 << 20, 3_000_000 - (2 << 20))]


@on_linux
@pytest.mark.parametrize("call", ["posix_fadvise", "mmap"])
def test_a_system_that_refuses_changes_nothing(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(*((os, call) if call == "posix_fadvise" else (mmap, call)), refuse)
    with open(tmp_path / "file", "w+b") as file:
        data = _written(file, 200_000)
        pages.read_anew(file)
        file.seek(0)
        assert file.read() == data


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with open(tmp_path / "file", "w+b") as file, pytest.raises(OSError, match="No space"):
        pages.read_anew(file)
