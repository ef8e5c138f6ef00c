"""The tables and the JSON of `glmcpu eval`, where numbers are missing, infinite, tiny or huge."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from glmcpu.cli import eval_table
from glmcpu.cli.eval_table import Row, kind_of, show, to_json
from glmcpu.evaluate import Text
from glmcpu.scoring import Tokens, summarize

TEXT = cast(Text, SimpleNamespace(path=Path("folder/x\n.jsonl"), items=2, scored=4))


def row(name: str, nll: float = 1.0, kl: list[float] | None = None, errors: Any = None, lengths: Any = (2, 2)) -> Row:
    n = sum(lengths)
    far = np.array([] if kl is None else kl)
    tokens = Tokens(np.linspace(nll, nll * 1.1, n), far, far < 1, far / 2, np.array(lengths), 0.25)
    return Row(name, "int4_g128", 4.125, 3_912_400_000, summarize(tokens), tokens, errors)


def lines(capsys: pytest.CaptureFixture[str], rows: list[Row], compared: bool) -> list[str]:
    show(rows, TEXT, compared)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("nll", [1e-9, 0.01, 1, 20, 600, 1e5])
@pytest.mark.parametrize("kl", [0.0, 1e-15, 0.02, 30.0])
def test_columns_stay_below_their_heads(nll: float, kl: float, capsys: pytest.CaptureFixture[str]) -> None:
    errors = {"embedding": kl, "layers.0.qkv": kl, "layers.1.qkv": math.inf, "lm_head": 0.0}
    rows = [row("r", nll), row("a name that is longer than its column", nll, [kl, kl, kl / 2, kl], errors)]
    out = lines(capsys, rows, True)
    tables = [block.splitlines() for block in "\n".join(out).split("\n\n")[1:]]
    assert len(tables) == 3
    for head, *body in tables:
        assert {len(line) for line in body} == {len(head)}
        assert len(head) <= 110
    assert "a name that is longer tha…" in out[-1]


def test_a_standard_error_decides_the_digits_and_may_be_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    assert eval_table._with_error(12345.678, 12.3) == "12,346 ± 12"
    assert eval_table._with_error(3.14159, 0.0123) == "3.142 ± 0.012"
    assert eval_table._with_error(3.14159, None) == "3.142 ± ?"
    assert eval_table._with_error(3.14159, 0.0) == "3.142 ± 0"
    assert "± ?" in lines(capsys, [row("a", lengths=(4,))], False)[-1]


def test_json_has_null_for_what_is_unknown_or_infinite() -> None:
    found = json.loads(to_json([row("a", 1e5, errors={"lm_head": math.inf}, lengths=(4,))], TEXT, False))
    (model,) = found["models"]
    assert (model["perplexity"], model["perplexity_se"], model["errors"]["lm_head"]) == (None, None, None)
    assert (found["text"], found["items"], found["tokens"], found["reference"]) == ("x\n.jsonl", 2, 4, None)


def test_a_name_of_a_text_cannot_write_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines(capsys, [row("a")], False)[0] == r"text       x\n.jsonl: 2 items, 4 tokens scored"


def test_a_matrix_is_of_the_kind_its_name_ends_with() -> None:
    assert [kind_of(name) for name in ("layers.12.qkv", "lm_head")] == ["qkv", "lm_head"]
