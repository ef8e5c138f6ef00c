"""`glmcpu eval`: tables, JSON, the picture, and one line for every kind of bad input."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import golden
import pytest
from tiny_talkers import examples, talker

from glmcpu import cli, limits
from glmcpu.cli import terminal

Capture = pytest.CaptureFixture[str]


def run(capfd: Capture, *arguments: object) -> tuple[int, str, str]:
    code = cli.main(["eval", *map(str, arguments)])
    return (code, *capfd.readouterr())


def last_json(out: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def test_without_a_reference_the_perplexity_of_each_model_is_shown(tmp_path: Path, capfd: Capture) -> None:
    code, out, _ = run(capfd, talker("f32"), talker("int8"), "--text", examples(tmp_path), "--json", "-t", "1")
    assert code == 0
    found = last_json(out)
    assert (found["text"], found["items"], found["reference"]) == ("examples.jsonl", 6, None)
    assert [model["name"] for model in found["models"]] == ["talker-f32", "talker-int8"]
    for model in found["models"]:
        assert model["tokens"] == found["tokens"] > 50
        assert model["kl"] is None
        assert model["perplexity"] > model["perplexity_se"] > 0
        assert model["seconds"] > 0
    assert re.search(r"\ntalker-int8 +int8 +[\d.]+ +[\d.]+ MB +[\d,.]+ ± [\d.]+ +\d+\.\d\n", out)
    assert "KL" not in out


def test_beside_a_reference_each_model_is_compared_with_it(tmp_path: Path, capfd: Capture) -> None:
    text = examples(tmp_path)
    models = [talker(weights) for weights in ("f32", "int8", "int4")]
    code, out, _ = run(capfd, *models, "--reference", talker("f32"), "--text", text, "--json", "--layers")
    assert code == 0
    found = last_json(out)
    same, eight, four = found["models"]
    assert found["reference"]["name"] == same["name"] == "talker-f32"
    assert (same["kl"]["mean"], same["kl"]["top1"], same["kl"]["largest_change"]) == (0, 1, 0)
    assert 0 < eight["kl"]["mean"] < four["kl"]["mean"]
    assert eight["kl"].keys() >= {"mean", "se", "median", "p99", "max", "quantiles", "top1", "largest_change"}
    assert four["errors"].keys() >= {"embedding", "layers.1.mlp_down", "lm_head"}
    assert (eight["weights"], eight["file_bytes"]) == ("int8", talker("int8").stat().st_size)
    tables = out.splitlines()[:-1]
    assert max(map(len, tables)) <= 110
    assert [line.split()[0] for line in tables if line.startswith("talker")].count("talker-int4") == 3


def test_max_tokens_ends_the_text(tmp_path: Path, capfd: Capture) -> None:
    text = examples(tmp_path)
    found = last_json(run(capfd, talker("int8"), "--text", text, "--max-tokens", "5", "--json")[1])
    assert (found["tokens"], found["items"]) == (5, 1)
    assert found["models"][0]["perplexity_se"] is None


def test_plain_text_is_read_and_the_only_model_is_found(
    tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLMCPU_HOME", str(talker("f16").parent / "home"))
    (talker("f16").parent / "home").mkdir(exist_ok=True)
    target = talker("f16").parent / "home" / "only.safetensors"
    target.write_bytes(talker("f16").read_bytes())
    text = tmp_path / "some.txt"
    text.write_text("hello world 你好\n" * 100, encoding="utf-8")
    code, out, _ = run(capfd, "--text", text, "--reference", "only", "--json")
    assert code == 0
    assert last_json(out)["models"][0]["name"] == "only"


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path, capfd: Capture) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "m.safetensors").write_bytes(talker("int8").read_bytes())
    models = [tmp_path / folder / "m.safetensors" for folder in "ab"]
    found = last_json(run(capfd, *models, "--text", examples(tmp_path), "--json")[1])
    assert [model["name"] for model in found["models"]] == [str(path) for path in models]


def test_the_picture_and_its_numbers(tmp_path: Path, capfd: Capture) -> None:
    pytest.importorskip("matplotlib")
    target = tmp_path / "x.svg"
    arguments = [talker("int4"), "--reference", talker("f16"), "--text", examples(tmp_path), "--plot", target, "--json"]
    code, out, _ = run(capfd, *arguments)
    assert code == 0
    assert "layers.0.qkv" in last_json(out)["models"][0]["errors"]
    picture = target.read_text(encoding="utf-8")
    assert all(word in picture for word in ("talker-int4", "talker-f16", "mlp_down", "lm_head", "KL divergence"))


def test_without_a_terminal_progress_is_a_few_lines(
    tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "NOTE_S", 0.0)
    _, out, err = run(capfd, talker("int8"), "--text", examples(tmp_path))
    assert re.search(r"glmcpu: evaluating: \d+ % \([\d,]+ of [\d,]+ tokens\)\n", err)
    assert err.count("\n") <= 11
    assert "evaluating" not in out


GOOD = '{"prompt": "a", "response": "b"}\n'


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("x.jsonl", "", ["x.jsonl: is empty"]),
        ("x.txt", "", ["x.txt: holds 0 tokens of text, and at least 4"]),
        ("x.txt", "a", ["at least 4"]),
        ("x.jsonl", GOOD + "oops\n", ["x.jsonl: line 2: not valid JSON at column 1"]),
        ("x.jsonl", GOOD + "[]\n", ["line 2", "a list of 0"]),
        ("x.jsonl", GOOD * 3 + '{"prompt": "a"}', ['line 4: has no "response"']),
        ("x.jsonl", '{"prompt": "a", "response": ""}', ['line 1: "response" is empty']),
        ("x.jsonl", '{"prompt": 5, "response": "b"}', ['line 1: "prompt" is a number']),
        ("x.jsonl", GOOD + '{"prompt": "你", "response": "b"}', ["line 2: byte 13 is not UTF-8 text (0xc4)"]),
        ("x.txt", "hello\n你好", ["x.txt: line 2: byte 1 is not UTF-8"]),
        ("x.jsonl", json.dumps({"prompt": "a " * 3000, "response": "b"}), ["line 1", "at most 2,048", "shorten"]),
        ("x.jsonl", None, ["x.jsonl: no such file"]),
    ],
)
def test_a_bad_text_is_one_line_with_its_place(
    name: str, data: str | None, words: list[str], tmp_path: Path, capfd: Capture
) -> None:
    text = tmp_path / name
    if data is not None:
        text.write_bytes(data.encode("gbk"))
    code, out, err = run(capfd, talker("int8"), "--text", text)
    assert (code, out) == (3, "")
    assert re.fullmatch(r"glmcpu: error: [^\n]{1,300}\n", err)
    assert all(word in err for word in words), err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, ["--text"]),
        (["--text", "x"], 3, ["x: no such file"]),
        (["none", "--text", "x"], 3, ["none"]),
        (["--text", "x", "--reference", "none"], 3, ["none"]),
        (["--text", "x", "--layers"], 2, ["--layers", "--reference"]),
        (["--text", "x", "--plot", "x.svg"], 2, ["--plot", "--reference"]),
        (["--text", "x", "--plot", ".", "-r", "x"], 2, ["--plot", "folder"]),
        (["--text", "x", "--max-tokens", "0"], 2, ["--max-tokens", "'0'", f"1 to {limits.EVAL_TOKENS:,}"]),
        (["--text", "x", "--max-tokens", "many"], 2, ["'many'"]),
        (["--text", "x", "--threads", "0"], 2, ["--threads"]),
        (["--text", "x", "--cache", "f64"], 2, ["f64"]),
    ],
)
def test_a_wrong_request_is_one_line(arguments: list[str], code: int, words: list[str], capfd: Capture) -> None:
    found, out, err = run(capfd, *arguments)
    assert (found, out) == (code, "")
    assert re.fullmatch(r"glmcpu: error: [^\n]{1,300}\n", err)
    assert all(word in err for word in words), err


def test_models_that_do_not_belong_together_are_one_line(tmp_path: Path, capfd: Capture) -> None:
    text = examples(tmp_path)
    for models in ([talker("f32"), "-r", golden.packed("tiny-mini", "f32")], [golden.packed("tiny-mini", "f32")]):
        code, out, err = run(capfd, *models, "--text", text)
        assert (code, out) == (3, "")
        assert re.fullmatch(r"glmcpu: error: [^\n]{1,300}\n", err)
        assert "tokenizer" in err


def test_a_missing_matplotlib_is_said_before_anything_is_measured(
    tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = run(capfd, "none", "-r", "none", "--text", "x", "--plot", tmp_path / "x.svg")
    assert code == 2
    assert "glmcpu[plot]" in err
