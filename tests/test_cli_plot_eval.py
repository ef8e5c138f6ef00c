"""The picture of `glmcpu eval --plot`."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glmcpu.cli import plot_eval
from glmcpu.cli.eval_table import Row
from glmcpu.scoring import Tokens, summarize

pytest.importorskip("matplotlib")
L = 28


def row(name: str, size: float, n: int = 500) -> Row:
    random = np.random.default_rng(1)
    kl = size * np.exp(random.standard_normal(n))
    tokens = Tokens(random.random(n), kl, kl < 1, kl, np.array([n]), 1.0)
    errors = {f"layers.{i}.{kind}": size * (1 + i) for i in range(L) for kind in ("qkv", "mlp_up")}
    errors = {"embedding": size, **errors, "lm_head": size}
    return Row(name, "int4", 4.0, 1, summarize(tokens), tokens, errors)


def drawn(folder: Path, *rows: Row, name: str = "x.svg") -> str:
    plot_eval.draw("the <reference>", rows, str(folder / name))
    return (folder / name).read_text(encoding="utf-8")


def test_each_model_has_a_map_and_a_line(tmp_path: Path) -> None:
    picture = drawn(tmp_path, row("first", 0.1), row("second", 0.001))
    assert picture.startswith("<?xml")
    for words in ("first: relative error", "second: relative error", "second (4.00 bits)", "qkv", "lm_head"):
        assert words in picture
    assert "the &lt;reference&gt;" in picture
    assert len(picture) < 400_000


def test_the_same_numbers_give_the_same_bytes(tmp_path: Path) -> None:
    assert drawn(tmp_path, row("a", 0.1)) == drawn(tmp_path, row("a", 0.1), name="y.svg")


def test_models_without_any_difference_or_with_one_token_are_drawn(tmp_path: Path) -> None:
    for rows in ([row("same", 0.0)], [row("same", 0.0), row("one", 0.1, 1)], [row("far", 1e30)]):
        assert rows[0].name in drawn(tmp_path, *rows)


def test_an_infinite_error_is_drawn(tmp_path: Path) -> None:
    infinite: Any = row("odd", 0.1)
    infinite.errors["lm_head"] = float("inf")
    assert "odd" in drawn(tmp_path, infinite)


def test_dollar_signs_are_no_formula(tmp_path: Path) -> None:
    assert "a$\\frac$" in drawn(tmp_path, row("a$\\frac$", 0.1))
