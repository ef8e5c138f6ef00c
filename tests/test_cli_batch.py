"""`glmcpu batch`: answers, figures and exit codes, one line for each wrong request, and an end by a signal."""

import inspect
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_talkers import loaded, talker

from glmcpu import cli, engine
from glmcpu.batch import Figures
from glmcpu.cli import batch, terminal

Capture = pytest.CaptureFixture[str]

# The command line, whose progress says when two lines are answered and then takes its time.
SLOW = """
import sys, time
from glmcpu import cli
from glmcpu.cli import batch
show = batch._Answering.show
def slow(self, figures):
    show(self, figures)
    if figures.done == 2:
        print("two", file=sys.stderr, flush=True)
        time.sleep(60)
batch._Answering.show = slow
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Five questions, for a model whose kernels are compiled, so that no line tells of that."""
    loaded("f32").compile()
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"hello {n}", "id": n}) + "\n" for n in range(5)))
    return path


def run(capfd: Capture, source: Path, *arguments: object) -> tuple[int, str]:
    """(exit code, stderr)"""
    fixed = ["batch", source, source.with_name("out.jsonl"), "-m", talker("f32"), "-n", 6, "-t", 1, *arguments]
    code = cli.main([str(argument) for argument in fixed])
    out, err = capfd.readouterr()
    assert out == ""
    return code, err


def answers(source: Path) -> list[dict[str, Any]]:
    text = source.with_name("out.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_all_lines_are_answered_in_order_and_counted(source: Path, capfd: Capture) -> None:
    code, err = run(capfd, source, "--greedy")
    assert code == 0
    assert re.fullmatch(r"glmcpu: 5 lines: 5 answered in 0:\d\d, [\d,]+\.\d tokens/s\n", err)
    assert [line["id"] for line in answers(source)] == [0, 1, 2, 3, 4]
    for n, line in enumerate(answers(source)):
        expected, _ = loaded("f32").chat(f"hello {n}", do_sample=False, max_new_tokens=6)
        assert line["response"] == expected


def test_options_reach_the_answers(source: Path, capfd: Capture) -> None:
    options = ["--seed", 3, "--temperature", 1.5, "--top-p", 0.9, "--top-k", 0, "--repetition-penalty", 1.2]
    assert run(capfd, source, *options, "--parallel", 2, "-c", 64)[0] == 0
    for n, line in enumerate(answers(source)):
        own = {"temperature": 1.5, "top_p": 0.9, "top_k": 0, "repetition_penalty": 1.2}
        expected, _ = loaded("f32").chat(f"hello {n}", seed=3 + n + 1, max_new_tokens=6, **own)
        assert line["response"] == expected


def test_bad_lines_are_told_and_counted_and_the_exit_code_is_3(source: Path, capfd: Capture) -> None:
    source.write_text('{"prompt": "a"}\noops\n{"prompt": "a", "top": 1}\n')
    code, err = run(capfd, source)
    assert code == 3
    first, second, figures = err.splitlines()
    assert first.startswith("glmcpu: line 2: not valid JSON at column 1")
    assert second.startswith('glmcpu: line 3: unknown key "top"; did you mean "stop"')
    assert figures.startswith("glmcpu: 3 lines: 1 answered, 2 with errors (lines 2, 3) in 0:0")
    code, err = run(capfd, source)
    assert (code, err) == (3, "glmcpu: 3 lines: 1 answered, 2 with errors (lines 2, 3), all of them before\n")


def test_many_bad_lines_do_not_fill_the_screen(source: Path, capfd: Capture) -> None:
    source.write_text("oops\n" * 1000)
    _, err = run(capfd, source)
    told = [line for line in err.splitlines() if ": line " in line]
    assert len(told) == 20
    assert "glmcpu: further errors are told in the output alone\n" in err
    assert "1,000 with errors (lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, ..)" in err


def test_a_cut_output_is_gone_on_with_and_overwrite_begins_anew(source: Path, capfd: Capture) -> None:
    target = source.with_name("out.jsonl")
    run(capfd, source, "--seed", 1)
    whole = target.read_bytes()
    target.write_bytes(whole[: len(whole) // 2])
    code, err = run(capfd, source, "--seed", 1)
    assert code == 0
    assert "5 lines: 5 answered, 2 of them before, the rest in 0:0" in err
    assert target.read_bytes() == whole
    code, err = run(capfd, source, "--seed", 2)
    assert code == 2
    assert re.fullmatch(r"glmcpu: error: [^\n]{1,300}\n", err)
    assert "other options" in err
    assert "--overwrite" in err
    assert target.read_bytes() == whole
    assert run(capfd, source, "--seed", 2, "--overwrite")[0] == 0
    assert target.read_bytes() != whole


def test_without_a_terminal_progress_is_a_few_lines(
    source: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "NOTE_S", 0.0)
    _, err = run(capfd, source)
    assert "glmcpu: answering: 20 % (1 of 5 lines, " in err
    assert err.count("\n") == 6


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, ["IN.jsonl"]),
        (["in.jsonl"], 2, ["OUT.jsonl"]),
        (["none.jsonl", "out.jsonl"], 3, ["none.jsonl: no such file"]),
        ([".", "out.jsonl"], 3, [".: is not a regular file"]),
        (["in.jsonl", "in.jsonl"], 2, ["in.jsonl: is the input and the output"]),
        (["in.jsonl", "."], 2, [": is a folder; name a file in it"]),
        (["in.jsonl", "out.jsonl", "--model", "none"], 3, ["none"]),
        (["in.jsonl", "out.jsonl", "--parallel", "0"], 2, ["--parallel", "'0'", "1 to 1,024"]),
        (["in.jsonl", "out.jsonl", "--parallel", "many"], 2, ["--parallel", "'many'"]),
        (["in.jsonl", "out.jsonl", "--max-new-tokens", "0"], 2, ["--max-new-tokens", "'0'"]),
        (["in.jsonl", "out.jsonl", "--top-p", "2"], 2, ["top_p is 2"]),
        (["in.jsonl", "out.jsonl", "--greedy", "--temperature", "1"], 2, ["--greedy", "contradict"]),
        (["in.jsonl", "out.jsonl", "--overwrit"], 2, ["--overwrit"]),
    ],
)
def test_a_wrong_request_is_one_line_and_nothing_is_written(
    arguments: list[str], code: int, words: list[str], source: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(source.parent)
    (source.parent / "home").mkdir()
    (source.parent / "home" / "m.safetensors").write_bytes(talker("f32").read_bytes())
    monkeypatch.setenv("GLMCPU_HOME", str(source.parent / "home"))
    assert cli.main(["batch", *arguments]) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert re.fullmatch(r"glmcpu: error: [^\n]{1,300}\n", err)
    assert all(word in err for word in words), err
    assert sorted(path.name for path in source.parent.iterdir()) == ["home", "in.jsonl"]


def test_the_default_of_parallel_is_the_engines() -> None:
    shown = next(option.help for option in batch.command.params if option.name == "parallel")  # type: ignore[attr-defined]
    assert f"[default: {engine.PARALLEL}]" in shown
    assert inspect.signature(engine.Engine).parameters["parallel"].default == engine.PARALLEL


@pytest.mark.parametrize(
    ("figures", "seconds", "words"),
    [
        (Figures(1000, 0, 1000, 16568, 2, [4, 17]), 723.5, "998 answered, 2 with errors (lines 4, 17) in 12:03, 22.9"),
        (Figures(2, 1, 2, 10, 1, [2]), 1, "1 answered, 1 with errors (line 2), 1 of them before, the rest in 0:01"),
        (Figures(2, 2, 2, 0, 0, []), 1, "2 lines: 2 answered, all of them before"),
        (Figures(0, 0, 0, 0, 0, []), 1, "0 lines: 0 answered"),
    ],
)
def test_the_summary_is_for_a_person(figures: Figures, seconds: float, words: str) -> None:
    assert words in batch.summary(figures, seconds)


@pytest.mark.skipif(sys.platform == "win32", reason="signals end a process without a word on Windows")
@pytest.mark.parametrize(("number", "code", "word"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")])
def test_a_signal_keeps_what_is_done_and_the_same_command_goes_on(
    number: str, code: int, word: str, source: Path, capfd: Capture
) -> None:
    target = source.with_name("out.jsonl")
    arguments = ["batch", source, target, "-m", talker("f32"), "-n", 6, "-t", 1, "--seed", 1]
    command = [sys.executable, "-c", SLOW, *map(str, arguments)]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    assert child.stderr is not None
    while (line := child.stderr.readline()) != "two\n":
        if not line:
            pytest.fail("ended before it answered two lines")
    child.send_signal(getattr(signal, number))
    _, err = child.communicate(timeout=20)
    assert child.returncode == code
    assert err == f"glmcpu: 2 of 5 lines are answered; the same command goes on there\nglmcpu: {word}\n"
    assert [line["id"] for line in answers(source)] == [0, 1]
    assert "2 of them before" in run(capfd, source, "--seed", 1)[1]
    whole = target.read_bytes()
    run(capfd, source, "--seed", 1, "--overwrite")
    assert target.read_bytes() == whole
