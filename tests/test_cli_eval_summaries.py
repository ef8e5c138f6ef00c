"""`glmcpu eval --task summarise`: the table, the file of answers, and one line for every wrong request."""

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

from glmcpu import Sampler, cli
from glmcpu.cli import terminal
from glmcpu.cli.eval_summaries import FILE_NAME
from glmcpu.engine import Engine
from glmcpu.predictions import Lengths, predict, read
from glmcpu.texts import Columns

Capture = pytest.CaptureFixture[str]
RESPONSE = "the quick brown fox 你好"

# The command line, whose progress says when two examples are answered and then takes its time.
SLOW = """
import sys, time
from glmcpu import cli
from glmcpu.cli import terminal
show = terminal.Counted.__call__
def slow(self, stage, done, total):
    show(self, stage, done, total)
    if done == 2:
        print("two", file=sys.stderr, flush=True)
        time.sleep(60)
terminal.Counted.__call__ = slow
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six examples in a data set's own columns, for a model whose kernels are compiled."""
    for library in ("jieba", "nltk", "rouge_chinese"):
        pytest.importorskip(library)
    loaded("f32").compile()
    lines: list[dict[str, Any]] = [{"content": f"hello {n}", "summary": f"{RESPONSE} " * (1 + n % 3)} for n in range(6)]
    lines[5]["talk"] = [["你好", "hello"]]
    path = tmp_path / "dev.json"
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


def run(capfd: Capture, data: Path, *arguments: object) -> tuple[int, str, str]:
    """Draws nearly at random, or the tiny model would repeat one id for ever."""
    code = cli.main([str(argument) for argument in (*command(data), *arguments)])
    return (code, *capfd.readouterr())


def command(data: Path) -> list[object]:
    columns = ["--prompt-column", "content", "--response-column", "summary", "--history-column", "talk"]
    sampling = ["--temperature", 3, "--top-p", 1, "--top-k", 0]
    return ["eval", "--task", "summarise", "--text", data, *columns, *sampling, "-t", 1, talker("f32")]


def answers(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / FILE_NAME).read_text(encoding="utf-8").splitlines()]


def test_the_answers_are_written_and_scored(data: Path, capfd: Capture) -> None:
    from glmcpu.summaries import Scorer, mean

    folder = data.with_name("out")
    code, out, err = run(capfd, data, "--seed", 1, "--output", folder, "--json")
    assert (code, err) == (0, "")
    found = answers(folder)
    assert [line["labels"] for line in found] == [" ".join([RESPONSE] * (1 + n % 3)) for n in range(6)]
    assert "你" in (folder / FILE_NAME).read_text(encoding="utf-8")
    assert [path.name for path in folder.iterdir()] == [FILE_NAME]

    asked = read(data, loaded("f32"), Columns("content", "summary", "talk"), Lengths())
    with Engine(loaded("f32")) as engine:
        expected = list(predict(engine, asked, Sampler(temperature=3, top_p=1, top_k=0, seed=1)))
    assert [line["predict"] for line in found] == [answer.strip() for answer in expected]
    scorer = Scorer()
    scores = mean([scorer.score(answer, one.label) for answer, one in zip(expected, asked, strict=True)])
    named = dict(zip(("bleu-4", "rouge-1", "rouge-2", "rouge-l"), (round(score, 4) for score in scores), strict=True))
    model = {"name": "talker-f32", "examples": 6, "empty": 0, **named}
    assert json.loads(out.splitlines()[-1]) == {"text": "dev.json", "task": "summarise", "models": [model]}
    assert scores.bleu_4 > 0
    row = rf"\ntalker-f32 +6 +{scores.bleu_4:.2f} +{scores.rouge_1:.2f} +{scores.rouge_2:.2f} +{scores.rouge_l:.2f}\n"
    assert re.search(row, out)


def test_a_seed_repeats_the_answers_and_options_reach_them(data: Path, capfd: Capture) -> None:
    whole = []
    for n, options in enumerate(
        (["--seed", 1], ["--seed", 1], ["--seed", 2], ["--seed", 1, "--repetition-penalty", 9])
    ):
        folder = data.with_name(f"out{n}")
        assert run(capfd, data, *options, "-o", folder)[0] == 0
        whole.append((folder / FILE_NAME).read_bytes())
    assert whole[0] == whole[1]
    assert len(set(whole)) == 3


def test_lengths_and_the_number_of_examples(data: Path, capfd: Capture) -> None:
    folder = data.with_name("out")
    options = ["--max-examples", 3, "--max-source-length", 9, "--max-target-length", 5, "--seed", 1, "-o", folder]
    assert run(capfd, data, *options)[0] == 0
    found, tokenizer = answers(folder), loaded("f32").tokenizer
    assert tokenizer is not None
    assert len(found) == 3
    label = tokenizer.decode(tokenizer.encode(RESPONSE, add_special_tokens=False)[:3])
    assert [line["labels"] for line in found] == [label.strip()] * 3


def test_each_model_has_a_row_and_greedy_answers_that_are_empty_are_told(data: Path, capfd: Capture) -> None:
    plain = ["--temperature", 0, "--max-target-length", 8]
    code, out, err = run(capfd, data, talker("int8"), *plain, "--json")
    assert code == 0
    first, second = json.loads(out.splitlines()[-1])["models"]
    assert (first["name"], second["name"]) == ("talker-f32", "talker-int8")
    told = [f"glmcpu: {m['name']}: {m['empty']} of 6 answers are empty, and count as 0" for m in (first, second)]
    assert [line for line in err.splitlines() if "empty" in line] == told
    assert len(re.findall(r"\ntalker-\w+ +6( +\d+\.\d\d){4}", out)) == 2


def test_without_a_terminal_progress_is_a_few_lines(
    data: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "NOTE_S", 0.0)
    _, out, err = run(capfd, data, "--seed", 1)
    assert "glmcpu: answering: 50 % (3 of 6 examples)\n" in err
    assert err.count("\n") == 6
    assert "answering" not in out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--layers"], 2, ["--layers is for --task perplexity", "the task is summarise"]),
        (["--reference", "x"], 2, ["--reference is for"]),
        (["--max-tokens", "5"], 2, ["--max-tokens is for"]),
        (["--plot", "x.svg"], 2, ["--plot is for"]),
        (["--output", "dev.json"], 2, ["--output dev.json: is a file; name a folder"]),
        (["--output", "out", "other"], 2, ["--output", "2 are named"]),
        (["--greedy"], 2, ["--greedy", "contradict"]),
        (["--top-p", "2"], 2, ["top_p is 2"]),
        (["--max-source-length", "2"], 2, ["--max-source-length", "'2'", "3 to"]),
        (["--max-target-length", "x"], 2, ["--max-target-length", "'x'"]),
        (["--max-target-length", "1984"], 2, ["64 ids of a prompt and 1,984 of an answer, and one, are 2,049"]),
        (["--max-examples", "0"], 2, ["--max-examples", "'0'"]),
        (["--prompt-column", "title"], 3, ["dev.json: line 1:", 'no "title" but content, summary']),
        (["--text", "none.json"], 3, ["none.json: no such file"]),
        (["none"], 3, ["none"]),
    ],
)
def test_a_wrong_request_is_one_line_and_nothing_is_written(
    arguments: list[str], code: int, words: list[str], data: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data.parent)
    (data.parent / "other").write_bytes(talker("f32").read_bytes())
    found, out, err = run(capfd, data, *arguments)
    assert (found, out) == (code, "")
    assert re.fullmatch(r"glmcpu: error: [^\n]{1,300}\n", err)
    assert all(word in err for word in words), err
    assert sorted(path.name for path in data.parent.iterdir()) == ["dev.json", "other"]


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--prompt-column", "a"], ["--history-column", "history"], ["--output", "x"], ["--max-examples", "5"]),
        *(["--greedy"], ["--seed", "1"], ["--top-p", "0.7"], ["--max-source-length", "64"]),
    ],
)
def test_its_options_are_refused_by_the_other_task(arguments: list[str], capfd: Capture) -> None:
    assert cli.main(["eval", "none", "--text", "x", *arguments]) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"{arguments[0]} is for --task summarise, and the task is perplexity" in err


@pytest.mark.parametrize("library", ["jieba", "nltk.translate.bleu_score", "rouge_chinese"])
def test_a_missing_library_is_said_before_a_model_is_opened(
    library: str, tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"")
    assert cli.main(["eval", str(broken), "--task", "summarise", "--text", "none"]) == 2
    assert 'pip install "glmcpu[tune]"' in capfd.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="signals end a process without a word on Windows")
@pytest.mark.parametrize(("number", "code", "word"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")])
def test_a_signal_leaves_the_file_of_an_earlier_run(number: str, code: int, word: str, data: Path) -> None:
    folder = data.with_name("out")
    folder.mkdir()
    (folder / FILE_NAME).write_text("before")
    arguments = [*map(str, command(data)), "--output", str(folder)]
    child = subprocess.Popen(
        [sys.executable, "-c", SLOW, *arguments], stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    assert child.stderr is not None
    while (line := child.stderr.readline()) != "two\n":
        if not line:
            pytest.fail("ended before it answered two examples")
    child.send_signal(getattr(signal, number))
    _, err = child.communicate(timeout=20)
    assert (child.returncode, err) == (code, f"glmcpu: {word}\n")
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [(FILE_NAME, "before")]
