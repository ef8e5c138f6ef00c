"""The file of typed lines: read, written, bounded, and never a reason to stop."""

import sys

import pytest

from glmcpu.cli.editing import REMEMBERED_LINES, line_editing

readline = pytest.importorskip("readline")


@pytest.fixture(autouse=True)
def _fresh_history():
    readline.clear_history()
    yield
    readline.clear_history()


def test_lines_come_back_and_only_the_newest_are_kept(tmp_path):
    path = tmp_path / "history"
    path.write_text("\n".join(f"line {n}" for n in range(REMEMBERED_LINES + 10)) + "\n")
    with line_editing(path):
        assert readline.get_current_history_length() == REMEMBERED_LINES
        readline.add_history("two\nlines")
    lines = path.read_text().splitlines()
    assert len(lines) == REMEMBERED_LINES
    assert lines[-2:] == [f"line {REMEMBERED_LINES + 9}", "two lines"]


@pytest.mark.parametrize("content", [b"\xff\xfe\x00\n", b"", b"\0\0\0", b"x" * 100_000])
def test_a_damaged_history_is_no_trouble(tmp_path, content):
    path = tmp_path / "history"
    path.write_bytes(content)
    with line_editing(path):
        pass


def test_a_history_that_cannot_be_read_or_written_is_no_trouble(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "history"):
        with line_editing(path):
            readline.add_history("x")


def test_without_readline_nothing_happens(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "readline", None)
    with line_editing(tmp_path / "history"):
        pass
    assert list(tmp_path.iterdir()) == []
