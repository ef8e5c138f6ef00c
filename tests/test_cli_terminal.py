"""Text to the console: harmless, in UTF-8, and progress that leaves nothing behind."""

import io
import sys

import pytest

from glmcpu.cli import terminal
from glmcpu.errors import MachineError


class Screen(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def make_screen(monkeypatch):
    """Puts a Screen in the place of stderr; called in the test itself, since pytest changes stderr after fixtures."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")

    def make(stream=None):
        monkeypatch.setattr(sys, "stderr", stream or Screen())
        return sys.stderr

    return make


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("glmcpu.cli.terminal.time.monotonic", lambda: now[0])
    return now


def test_line_ends_tabs_and_all_scripts_pass_unchanged():
    text = "a\tb\n你好 🫠👨\u200d👩\u200d👧 été ひらがな\u3000עברית\xa0\n"
    assert terminal.visible(text) == text


def test_no_control_character_passes():
    controls = [chr(c) for c in (*range(32), *range(127, 160)) if chr(c) not in "\n\t"]
    assert not set(terminal.visible("".join(controls))) & set(controls)
    assert terminal.visible("\x1b]0;t\x07\r") == "␛]0;t␇␍"


def test_marks_that_reverse_a_line_are_dropped():
    assert terminal.visible("a\u202eb\u2066c\u2069d\u200f\u061ce") == "abcde"


def test_streams_become_utf8_and_replace_what_is_no_text(monkeypatch):
    streams = {
        name: io.TextIOWrapper(io.BytesIO(b"\xff\xe4"), encoding="ascii") for name in ("stdin", "stdout", "stderr")
    }
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    terminal.use_utf8()
    assert sys.stdin.read() == "\ufffd\ufffd"
    terminal.write("好\udcff\n")
    assert streams["stdout"].buffer.getvalue() == "好\\udcff\n".encode()


def test_absent_streams_are_no_trouble(monkeypatch):
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    terminal.use_utf8()
    terminal.write("x")
    terminal.note("x")
    assert not terminal.is_terminal(sys.stdin)


def test_a_failing_stdout_is_a_machine_error_and_a_failing_stderr_is_nothing(monkeypatch):
    class Full(io.StringIO):
        def write(self, _):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    monkeypatch.setattr(sys, "stderr", Full())
    terminal.note("x")
    with pytest.raises(MachineError, match=r"standard output.*No space left"):
        terminal.write("x")


def test_a_status_line_is_rewritten_in_place_and_gone_at_the_end(make_screen, clock):
    screen = make_screen()
    with terminal.StatusLine() as line:
        line.show("reading 1")
        clock[0] += 1
        line.show("read 2")
    assert screen.getvalue() == "\rreading 1\rread 2   \r      \r"


def test_a_status_line_is_redrawn_ten_times_a_second_at_most(make_screen, clock):
    screen = make_screen()
    line = terminal.StatusLine()
    for n in range(100):
        line.show(f"step {n}")
        clock[0] += 0.01
    assert 10 <= screen.getvalue().count("step") <= 11


def test_a_status_line_fits_a_terminal_of_any_width(make_screen, clock, monkeypatch):
    for columns in (1, 2, 10):
        monkeypatch.setenv("COLUMNS", str(columns))
        screen = make_screen()
        terminal.StatusLine().show("x" * 50)
        assert screen.getvalue().count("x") == max(1, columns - 1)


@pytest.mark.parametrize("kind", ["dumb", "pipe"])
def test_without_a_real_terminal_there_is_no_status_line(kind, make_screen, monkeypatch):
    screen = make_screen(io.StringIO() if kind == "pipe" else None)
    if kind == "dumb":
        monkeypatch.setenv("TERM", "dumb")
    with terminal.StatusLine() as line:
        line.show("x")
    assert screen.getvalue() == ""


def test_byte_progress_shows_a_bar_with_bytes_and_time_left(make_screen, clock):
    screen = make_screen()
    progress = terminal.ByteProgress(terminal.StatusLine())
    progress("convert", 0, 4_000_000_000)
    clock[0] += 10
    progress("convert", 1_000_000_000, 4_000_000_000)
    assert screen.getvalue().endswith("convert [#####...............]  25%  1,000 of 4,000 MB  0:30 left")


def test_byte_progress_writes_a_line_for_every_tenth_elsewhere(capsys, clock):
    progress = terminal.ByteProgress(terminal.StatusLine())
    for stage in ("download", "convert"):
        for done in range(101):
            clock[0] += 1
            progress(stage, done * 1_000_000, 100_000_000)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 20
    assert lines[0] == "glmcpu: download: 10 % (10 of 100 MB)"
    assert lines[-1] == "glmcpu: convert: 100 % (100 of 100 MB)"


def test_byte_progress_of_a_quick_job_is_silent(capsys, clock):
    progress = terminal.ByteProgress(terminal.StatusLine())
    for done in range(101):
        clock[0] += 0.009
        progress("convert", done, 100)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("n_bytes", "words"), [(0, "0.0 kB"), (99_999, "100.0 kB"), (100_000, "0.1 MB"), (3_912_400_000, "3,912.4 MB")]
)
def test_sizes_are_for_a_person(n_bytes, words):
    assert terminal.size(n_bytes) == words


def test_byte_progress_survives_an_unknown_total(capsys, clock):
    progress = terminal.ByteProgress(terminal.StatusLine())
    clock[0] += 2
    progress("download", 5, 0)
    progress("download", 5, 3)
    assert "100 %" in capsys.readouterr().err


def test_progress_of_other_things_is_counted(make_screen, clock):
    screen = make_screen()
    terminal.Counted(terminal.StatusLine(), "lines")("answering", 1000, 4000)
    assert screen.getvalue() == "\ranswering [#####...............]  25%  1,000 of 4,000 lines  "


def test_the_time_left_is_that_of_what_was_not_there_at_the_beginning(make_screen, clock):
    screen = make_screen()
    progress = terminal.Counted(terminal.StatusLine(), "lines")
    progress("answering", 50, 100)
    clock[0] += 10
    progress("answering", 60, 100)
    assert screen.getvalue().endswith("60 of 100 lines  0:40 left")


def test_tenths_that_were_there_at_the_beginning_are_no_news(capsys, clock):
    progress = terminal.Counted(terminal.StatusLine(), "lines")
    for done in range(50, 101):
        clock[0] += 2
        progress("answering", done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "glmcpu: answering: 60 % (60 of 100 lines)"
    assert len(lines) == 5
