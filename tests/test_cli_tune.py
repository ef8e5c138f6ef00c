"""`glmcpu tune`: what it writes and says, and one line for every kind of bad request."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_talkers import talker
from tiny_tuning import write_examples

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("matplotlib", reason="matplotlib is not installed")

import glmcpu
from glmcpu import cli
from glmcpu.tuning.training import Trainer

Capture = pytest.CaptureFixture[str]
SHORT = ("--prefix-tokens", 3, "--batch", 2, "--accumulation", 1, "--steps", 4, "--save-every", 2)


def run(capfd: Capture, *arguments: object) -> tuple[int, str, str]:
    code = cli.main(["tune", *map(str, arguments)])
    return (code, *capfd.readouterr())


def test_a_prefix_is_learnt_and_chat_takes_it(tmp_path: Path, capfd: Capture) -> None:
    out = tmp_path / "out"
    data, other = write_examples(tmp_path / "x.jsonl"), write_examples(tmp_path / "y.jsonl", 2)
    code, said, notes = run(capfd, data, "--base", talker("int8"), "-o", out, "--validation", other, *SHORT)
    assert code == 0
    assert re.fullmatch(r"wrote \S+: 4 steps, best validation loss [\d.]+; next: glmcpu chat \S+ --adapter \S+\n", said)
    assert "glmcpu: training: 7 examples\nglmcpu: validation: 2 examples\n" in notes
    assert re.search(r"step 4 of 4, loss [\d.]+, validation [\d.]+, 0 s left", notes)
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert {name for name in names if not name.endswith("-lock")} == {
        *(
            f"{folder}{name}"
            for folder in ("", "checkpoint-2/", "checkpoint-4/")
            for name in ("pytorch_model.bin", "config.json")
        ),
        "training_state.bin",
        "loss.jsonl",
        "loss.svg",
    }
    svg = (out / "loss.svg").read_text(encoding="utf-8")
    assert "validation" in svg
    code = cli.main(["chat", str(talker("int8")), "--adapter", str(out), "-p", "hello", "-n", "3", "--greedy"])
    assert code == 0
    assert "glmcpu: prefix: 3 tokens\n" in capfd.readouterr().err


def test_columns_of_published_data_and_cuts_are_told(tmp_path: Path, capfd: Capture) -> None:
    data = tmp_path / "adgen.jsonl"
    data.write_text(json.dumps({"content": "hello " * 50, "summary": "你好"}) + "\n", encoding="utf-8")
    columns = ("--prompt-column", "content", "--response-column", "summary", "--max-source-length", 16)
    code, _, notes = run(capfd, data, "--base", talker("int8"), "-o", tmp_path / "out", *columns, *SHORT)
    assert code == 0
    assert "training: 1 example; 1 question is longer than 16 tokens and was cut" in notes


def test_an_interrupted_training_goes_on_to_the_same_prefix(
    tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, real = write_examples(tmp_path / "x.jsonl"), Trainer._step

    def step(self: Trainer) -> float:
        if self.state.step == 3 and not (tmp_path / "stopped").exists():
            (tmp_path / "stopped").touch()
            raise KeyboardInterrupt
        return real(self)

    common = (data, "--base", talker("int8"), *SHORT)
    assert run(capfd, *common, "-o", tmp_path / "whole")[0] == 0
    monkeypatch.setattr(Trainer, "_step", step)
    code, _, notes = run(capfd, *common, "-o", tmp_path / "parts")
    assert code == 130
    assert "the same command with --resume goes on from the last checkpoint" in notes
    assert run(capfd, *common, "-o", tmp_path / "parts")[0] == 2
    code, _, notes = run(capfd, *common, "-o", tmp_path / "parts", "--resume")
    assert code == 0
    assert "glmcpu: goes on after step 2 of 4\n" in notes
    logs = [(tmp_path / folder / "loss.jsonl").read_bytes() for folder in ("whole", "parts")]
    assert logs[0] == logs[1]


def test_a_training_that_ended_before_its_first_checkpoint_goes_on_or_is_replaced(
    tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = (write_examples(tmp_path / "x.jsonl"), "--base", talker("int8"), *SHORT, "--save-every", 4)
    assert run(capfd, *common, "-o", tmp_path / "whole")[0] == 0
    real = Trainer._step

    def step(self: Trainer) -> float:
        if self.state.step == 1:
            raise KeyboardInterrupt
        return real(self)

    for option in ("--resume", "--overwrite"):
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_step", step)
            assert run(capfd, *common, "-o", tmp_path / option)[0] == 130
        code, _, err = run(capfd, *common, "-o", tmp_path / option)
        assert code == 2
        assert "go on with --resume, or replace it with --overwrite" in err
        assert run(capfd, *common, "-o", tmp_path / option, option)[0] == 0
        for name in ("loss.jsonl", "pytorch_model.bin"):
            assert (tmp_path / option / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_overwriting_leaves_nothing_of_the_training_before(tmp_path: Path, capfd: Capture) -> None:
    common = (write_examples(tmp_path / "x.jsonl"), "--base", talker("int8"), "-o", tmp_path / "out", *SHORT)
    mine = tmp_path / "out" / "notes.txt"
    assert run(capfd, *common)[0] == 0
    mine.write_text("mine")
    assert run(capfd, *common, "--overwrite", "--steps", 3)[0] == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
    assert mine.read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, ["DATA.jsonl"]),
        (["absent.jsonl", "-o", "out"], 3, ["absent.jsonl: no such file"]),
        (["x.jsonl", "-o", "out", "--steps", "0"], 2, ["'0' is not a whole number, 1 to"]),
        (["x.jsonl", "-o", "out", "--steps", "5", "--epochs", "2"], 2, ["both say how long to train"]),
        (["x.jsonl", "-o", "out", "--learning-rate", "-1"], 2, ["learning_rate=-1.0"]),
        (["x.jsonl", "-o", "out", "--schedule", "step"], 2, ["'step'", "linear"]),
        (["x.jsonl", "-o", "out", "--resume"], 3, ["holds no training to go on with"]),
        (["x.jsonl", "-o", "out", "--resume", "--overwrite"], 2, ["give one of them"]),
        (["x.jsonl", "-o", ""], 2, ["the output's name is empty"]),
        (["x.jsonl", "-o", "out", "--patience", "2"], 2, ["are for the validation loss"]),
        (["x.jsonl", "-o", "out", "--evaluate-every", "2"], 2, ["are for the validation loss"]),
        (["x.jsonl", "-o", "out", "--seed", "4294967297"], 2, ["0 to 4,294,967,296"]),
        (
            ["x.jsonl", "-o", "foreign"],
            2,
            ["pytorch_model.bin: is there and of no training", "another folder"],
        ),
        (["x.jsonl", "-o", "foreign", "--overwrite"], 2, ["is there and of no training of glmcpu"]),
        (["x.jsonl", "-o", "x.jsonl"], 2, ["x.jsonl: is a file; name a folder"]),
        (["bad.jsonl", "-o", "out"], 3, ["bad.jsonl: line 2", "response"]),
        (["x.jsonl", "-o", "out", "--device", "tpu"], 2, ["unknown device 'tpu'"]),
        (["x.jsonl", "-o", "out", "--base", "absent"], 3, ["absent"]),
    ],
)
def test_a_wrong_request_is_one_line(
    arguments: list[str], code: int, words: list[str], tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_examples(Path("x.jsonl"))
    Path("foreign").mkdir()
    Path("foreign/pytorch_model.bin").write_bytes(b"somebody's")
    Path("bad.jsonl").write_text('{"prompt": "a", "response": "b"}\n{"prompt": "a"}\n')
    base = [] if "--base" in arguments or not arguments else ["--base", str(talker("int8"))]
    found, out, err = run(capfd, *arguments, *base)
    assert found == code
    assert out == ""
    assert all(word in err for word in words)
    errors = [line for line in err.splitlines() if line.startswith("glmcpu: error")]
    assert len(errors) == 1
    assert len(errors[0]) <= 300
    assert "Traceback" not in err
    assert not Path("out").exists()
    assert [path.read_bytes() for path in Path("foreign").iterdir()] == [b"somebody's"]


@pytest.mark.parametrize("missing", ["torch", "matplotlib"])
def test_a_missing_library_says_how_to_get_it(
    missing: str, tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [m for m in sys.modules if m.startswith("glmcpu.tuning") or m == "glmcpu.backends.torch_training"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(glmcpu, "tuning", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    code, _, err = run(capfd, write_examples(tmp_path / "x.jsonl"), "-o", tmp_path / "out")
    assert code == 2
    assert err == f'glmcpu: error: tuning needs {missing}, which is not installed; run pip install "glmcpu[tune]"\n'


def test_options_have_the_names_of_the_settings() -> None:
    from dataclasses import fields

    from glmcpu.cli.tune import command
    from glmcpu.tuning import Settings

    known: set[Any] = {parameter.name for parameter in command.params}
    assert {field.name for field in fields(Settings)} <= known
