"""`glmcpu bench`: the table, the JSON line, and refusals before anything is measured."""

import json
import re
from typing import Any

import pytest
from tiny_random import CHATGLM, TINY, hasty, quiet, tiny_chatglm_6b

from glmcpu import cli, random_weights, store
from glmcpu.cli import bench
from glmcpu.errors import DataError

__all__ = ["hasty", "tiny_chatglm_6b"]
SMALL = ["--prompts", "4,9", "--contexts", "9", "--batch", "1,2", "--tokens", "3", "--repeats", "1", "--threads", "1"]
FIELDS = {
    "format": str,
    "isa": str,
    "threads": int,
    "threading_layer": str,
    "weights_bytes": int,
    "read_gb_per_s": float,
    "dot_gmac_per_s": float,
    "load_s": float,
    "first_token_s": float,
    "peak_rss_bytes": int,
    "prefill": list,
    "decode": list,
}
pytestmark = pytest.mark.usefixtures("hasty", "tiny_chatglm_6b")
Capture = pytest.CaptureFixture[str]


def _run(capfd: Capture, *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["bench", *arguments])
    return (code, *capfd.readouterr())


def _json(out: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def test_a_published_architecture_is_measured_without_a_download(capfd: Capture) -> None:
    code, out, _ = _run(capfd, "chatglm-6b", *SMALL, "--json")
    assert code == 0
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["machine", "threads", "ceiling"]
    assert [line.split()[:3] for line in lines if re.match("prefill|decode", line)] == [
        ["prefill", "4", "1"],
        ["prefill", "9", "1"],
        ["decode", "9", "1"],
        ["decode", "9", "2"],
    ]
    run = _json(out)
    assert {name: type(run[name]) for name in FIELDS} == FIELDS
    assert (run["model"], run["format"]) == ("chatglm-6b", "int4_g32")
    assert {"tokens", "tok_per_s", "of_ceiling"} <= run["prefill"][0].keys()
    assert {"context", "batch", "tok_per_s", "ms_p50", "gb_per_s", "of_ceiling"} <= run["decode"][0].keys()
    assert not list(store.home().glob(".bench*safetensors"))


def test_the_table_is_at_most_100_columns_wide(capfd: Capture) -> None:
    out = _run(capfd, "chatglm-6b", *SMALL)[1]
    assert max(map(len, out.splitlines())) <= 100
    assert "{" not in out


def test_several_formats_are_measured_one_after_the_other(capfd: Capture) -> None:
    out = _run(capfd, "chatglm-6b", *SMALL, "--weights", "int8,f16", "--json")[1]
    run = _json(out)
    assert [each["format"] for each in run["runs"]] == ["int8", "f16"]
    assert run["format"] == "int8"


def test_a_file_is_measured_as_it_is_and_stays(capfd: Capture) -> None:
    target = store.home() / "mine.safetensors"
    random_weights.write(target, "chatglm", CHATGLM.Config(**TINY), "int4", quiet)
    for name in (["mine"], [str(target)], []):
        run = _json(_run(capfd, *name, *SMALL, "--json")[1])
        assert (run["model"], run["format"]) == ("mine.safetensors", "int4")
    assert target.is_file()
    code, _, err = _run(capfd, "mine", "--weights", "int8")
    assert code == 2
    assert "mine.safetensors" in err


def test_without_a_model_the_only_one_is_measured_or_the_published_one() -> None:
    assert bench.find_model(None) == "chatglm-6b"
    for name in ("a", "b"):
        (store.home() / f"{name}.safetensors").touch()
        if name == "a":
            assert bench.find_model(None) == store.home() / "a.safetensors"
    with pytest.raises(DataError, match="2 models"):
        bench.find_model(None)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--prompts", "1"], 2, ["--prompts", "'1'", "2 to"]),
        (["--prompts", "128,x"], 2, ["--prompts", "'x'"]),
        (["--prompts", "128,"], 2, ["--prompts", "''"]),
        (["--contexts", "-5"], 2, ["--contexts", "'-5'"]),
        (["--contexts", "1048576"], 2, ["1,048,576", "--tokens"]),
        (["--prompts", "1048576"], 2, ["1,048,576", "--tokens"]),
        (["--batch", "0"], 2, ["--batch", "'0'", "1 to"]),
        (["--batch", "99999"], 2, ["--batch", "'99999'", "1 to"]),
        (["--tokens", "0"], 2, ["--tokens", "'0'"]),
        (["--repeats", "many"], 2, ["--repeats", "'many'"]),
        (["--threads", "0"], 2, ["--threads", "'0'"]),
        (["--weights", "int4,int5"], 2, ["int5", "did you mean"]),
        (["nothing"], 3, ["nothing", "glmcpu convert"]),
        (["--plot", "."], 2, ["--plot", "folder"]),
    ],
)
def test_a_wrong_request_is_one_line(arguments: list[str], code: int, words: list[str], capfd: Capture) -> None:
    found, out, err = _run(capfd, *arguments)
    assert (found, out) == (code, "")
    assert re.fullmatch(r"glmcpu: error: [^\n]{1,300}\n", err)
    assert all(word in err for word in words), err


def test_quick_is_a_smaller_plan_and_what_is_said_counts() -> None:
    none = dict.fromkeys(("prompts", "contexts", "batch", "tokens", "repeats"))
    quick, whole = bench.make_plan(quick=True, **none), bench.make_plan(quick=False, **none)
    assert len(quick.contexts) < len(whole.contexts)
    assert bench.make_plan(quick=True, **{**none, "batch": (4,), "tokens": 9}).batches == (4,)
    assert bench.make_plan(quick=True, **{**none, "tokens": 9}).tokens == 9
