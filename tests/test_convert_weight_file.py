"""Reads are exact, and a file that is short, failing or changing is an error that names it."""

import os
from pathlib import Path

import pytest

from glmcpu.convert.weight_file import WeightFile
from glmcpu.errors import DataError, MachineError, shown


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "m.bin"
    path.write_bytes(bytes(range(100)))
    return path


def test_reads_are_exact(path: Path) -> None:
    file = WeightFile(path)
    assert file.size_bytes == 100
    assert file.read(10, 5) == bytes(range(10, 15))
    assert file.read(100, 0) == b""
    file.close()


def test_reading_past_the_end_says_both_sizes(path: Path) -> None:
    file = WeightFile(path)
    with pytest.raises(DataError, match="truncated: expected at least 101 bytes, has 100; download it again"):
        file.read(91, 10)
    file.close()


def test_file_that_changes_while_it_is_read_is_an_error(path: Path) -> None:
    for change in (lambda: path.write_bytes(b"short"), lambda: os.utime(path, ns=(1, 1))):
        file = WeightFile(path)
        change()
        with pytest.raises(MachineError, match=r"m\.bin: changed while reading"):
            file.read(0, 5)
        file.close()


def test_short_reads_are_completed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = WeightFile(path)

    class OneByte:
        def seek(self, at: int) -> None:
            real.seek(at)

        def readinto(self, out: memoryview) -> int:
            return real.readinto(out[:1])  # type: ignore[attr-defined]

        def fileno(self) -> int:
            return real.fileno()

    real = file.file
    monkeypatch.setattr(file, "file", OneByte())
    assert file.read(0, 100) == bytes(range(100))
    real.close()


def test_a_failing_disk_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = WeightFile(path)

    class Broken:
        def seek(self, _: int) -> None:
            raise OSError(5, "Input/output error")

    real = file.file
    monkeypatch.setattr(file, "file", Broken())
    with pytest.raises(MachineError, match=r"m\.bin: cannot be read at byte 7: Input/output error"):
        file.read(7, 1)
    real.close()


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        WeightFile(tmp_path / "none.bin")
    with pytest.raises(DataError):
        WeightFile(tmp_path)


def test_long_paths_show_their_end_and_control_characters_are_escaped() -> None:
    assert shown(Path("a" * 300) / "m.bin").endswith("a/m.bin".replace("/", os.sep))
    assert len(shown(Path("a" * 300))) == 120
    assert shown(Path("a\x1b[2J")) == r"a\x1b[2J"
