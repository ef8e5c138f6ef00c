"""No end of a run, and no other file in the output's place, that the next run could not go on from or refuse."""

import errno
import os
import sys
from pathlib import Path
from typing import Any

import golden
import pytest
from canned_batch import GREEDY, QUESTIONS, WARM, CannedEngine, answers, canned, questions
from tiny_adapter import prefix_tensors, write_lora, write_prefix
from tiny_talkers import loaded, talker

from glmcpu import MachineError, Model, Sampler, UsageError, files
from glmcpu.batch import Batch, Figures, made_with
from glmcpu.batch_lines import Options


@pytest.fixture
def done(tmp_path: Path) -> Path:
    """An input with one bad line that was answered by the canned engine."""
    source = questions(tmp_path, [*QUESTIONS[:2], "", "oops", QUESTIONS[2]])
    canned(source)
    return tmp_path / "out.jsonl"


def test_whatever_byte_the_output_was_cut_at_the_next_run_completes_it(done: Path) -> None:
    source, whole = done.with_name("in.jsonl"), done.read_bytes()
    for cut in range(len(whole) + 1):
        for tail in (b"", b"\0" * 5):
            if tail and whole[:cut].endswith(b"\n"):
                continue
            done.write_bytes(whole[:cut] + tail)
            figures = canned(source)
            assert done.read_bytes() == whole, cut
            assert (figures.lines, figures.done, figures.failed, figures.failed_lines) == (4, 4, 1, [4])
            assert figures.kept == whole[:cut].count(b"\n")


def test_a_longer_input_is_gone_on_with(done: Path) -> None:
    source, before = done.with_name("in.jsonl"), done.read_bytes()
    source.write_text(source.read_text(encoding="utf-8") + '\n{"prompt": "more"}\n', encoding="utf-8")
    figures = canned(source)
    assert (figures.kept, figures.done) == (4, 5)
    assert done.read_bytes().startswith(before)


def test_what_is_done_is_not_asked_again(done: Path) -> None:
    engine = CannedEngine()
    figures = canned(done.with_name("in.jsonl"), engine)
    assert (figures.kept, figures.done, figures.tokens, engine.submitted) == (4, 4, 0, 0)


@pytest.mark.parametrize("at", range(1, 12))
def test_an_interrupt_at_any_time_leaves_whole_lines_to_go_on_from(at: int, done: Path) -> None:
    source, whole, calls = done.with_name("in.jsonl"), done.read_bytes(), 0

    def progress(_: Figures) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            raise KeyboardInterrupt

    engine: Any = CannedEngine()
    with pytest.raises(KeyboardInterrupt):
        Batch(engine, source, done, GREEDY, progress=progress).run(overwrite=True)
    left = done.read_bytes()
    assert whole.startswith(left)
    assert not left or left.endswith(b"\n")
    canned(source)
    assert done.read_bytes() == whole


@pytest.mark.parametrize("name", ["another prompt", "a line in front", "a line less"])
def test_a_changed_input_is_refused_and_nothing_lost(name: str, done: Path) -> None:
    source, before = done.with_name("in.jsonl"), done.read_bytes()
    text = source.read_text(encoding="utf-8")
    changed, words = {
        "another prompt": (text.replace("hello", "hallo"), "line 1 answers something else than line 1 of the input"),
        "a line in front": ("\n" + text, "line 1 answers something else than line 2 of the input"),
        "a line less": ("".join(text.splitlines(True)[:-1]), "has more lines than"),
    }[name]
    source.write_text(changed, encoding="utf-8")
    with pytest.raises(UsageError, match=f"{words}.*--overwrite"):
        canned(source)
    assert done.read_bytes() == before


@pytest.mark.parametrize(
    "options", [Options(Sampler(), 12), Options(GREEDY.sampler, 13), Options(GREEDY.sampler, 12, "S"), WARM]
)
def test_other_options_are_refused_and_nothing_lost(options: Options, done: Path) -> None:
    before = done.read_bytes()
    with pytest.raises(UsageError, match=r"line 1 was made with another model or other options.*--overwrite"):
        canned(done.with_name("in.jsonl"), options=options)
    assert done.read_bytes() == before
    canned(done.with_name("in.jsonl"), options=options, overwrite=True)
    assert [line["line"] for line in answers(done)] == [1, 2, 4, 5]


def test_another_model_is_refused(done: Path) -> None:
    engine = CannedEngine()
    engine.model = loaded("int8")
    with pytest.raises(UsageError, match="another model"):
        canned(done.with_name("in.jsonl"), engine)


def test_context_cache_and_adapter_are_among_what_decides_an_answer(tmp_path: Path) -> None:
    one, other = (write_prefix(tmp_path / str(n), prefix_tensors(n)) for n in (3, 4))
    settings: list[dict[str, Any]] = [{}, {"context": 100}, {"cache": "int8"}, {"cache": "f16"}]
    settings += [{"adapter": one}, {"adapter": other}, {"adapter": write_lora(tmp_path / "lora")}]
    settings += [{"backend": name} for name in golden.BACKENDS if name != "cpu"]
    assert len({made_with(Model.load(talker("f32"), **own), GREEDY) for own in settings}) == len(settings)
    assert made_with(Model.load(talker("f32"), threads=1), GREEDY) == made_with(loaded("f32"), GREEDY)


@pytest.mark.parametrize(
    "foreign",
    [
        b"a text without a line end",
        b"a text\n",
        b"\n",
        b'{"line": 1}\n',
        b'{"line": 1, "digest": 5}\n',
        b"[1]\n",
        b"{",
        b"\xff\n",
        b'{"line": 2',
    ],
)
def test_a_file_that_is_no_output_stays_as_it_is(foreign: bytes, tmp_path: Path) -> None:
    source, target = questions(tmp_path), tmp_path / "out.jsonl"
    target.write_bytes(foreign)
    if b'{"line": 1, "digest": "'.startswith(foreign):  # which may be the beginning of one
        canned(source)
        return
    with pytest.raises(UsageError, match=r"out.jsonl: line 1 is none that glmcpu batch has written; .*--overwrite"):
        canned(source)
    assert target.read_bytes() == foreign
    assert canned(source, overwrite=True).done == len(QUESTIONS)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_input_and_output_in_one_file_are_refused(tmp_path: Path) -> None:
    source = questions(tmp_path)
    (tmp_path / "link").symlink_to(source)
    os.link(source, tmp_path / "other")
    engine: Any = CannedEngine()
    for name in ("in.jsonl", "link", "other"):
        with pytest.raises(UsageError, match="is the input and the output"):
            Batch(engine, source, tmp_path / name, GREEDY)


def test_a_second_run_on_one_output_is_refused(done: Path) -> None:
    with files.growing(done), pytest.raises(MachineError, match="another glmcpu is writing it"):
        canned(done.with_name("in.jsonl"))


@pytest.mark.parametrize("room_bytes", range(0, 700, 37))
def test_a_full_disk_leaves_whole_lines_and_the_next_run_goes_on(
    room_bytes: int, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, whole, write = done.with_name("in.jsonl"), done.read_bytes(), os.write

    def bounded(descriptor: int, data: bytes) -> int:
        left = room_bytes - os.fstat(descriptor).st_size
        if left <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[:left])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", bounded)
        if room_bytes < len(whole):
            with pytest.raises(MachineError, match=r"out.jsonl: no space left to write it; free some and run again"):
                canned(source, overwrite=True)
        else:
            canned(source, overwrite=True)
    left = done.read_bytes()
    assert whole.startswith(left)
    assert not left or left.endswith(b"\n")
    canned(source)
    assert done.read_bytes() == whole
