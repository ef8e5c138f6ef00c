"""The picture of `glmcpu bench --plot`, and what happens without matplotlib."""

import sys
from pathlib import Path

import pytest

from glmcpu.bench import Decode, Prefill, Run
from glmcpu.cli import plot
from glmcpu.errors import UsageError


def _run(form: str, batches: tuple[int, ...]) -> Run:
    prefill = [Prefill(T, 80.0, (70.0, 85.0), T / 80, 400.0, 470.0, 0.85) for T in (128, 512)]
    decode = [Decode(S, B, 10.0 * B, (9.0 * B, 11.0 * B), 100.0, 36.0, 40.0, 0.9) for S in (128, 512) for B in batches]
    return Run(
        "a <model>", form, "f16", "a CPU", "avx2", 2, "omp", 1, 40.0, 470.0, 118.0, 0.1, 1.6, None, prefill, decode
    )


def test_a_missing_matplotlib_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r'pip install "glmcpu\[plot\]"'):
        plot.require(str(tmp_path / "x.svg"))


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        plot.require(str(tmp_path))


def test_every_format_and_batch_has_a_line_and_a_ceiling(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    target = tmp_path / "bench.svg"
    plot.require(str(target))
    plot.draw([_run("int4", (1, 8)), _run("int8", (1,))], str(target))
    text = target.read_text(encoding="utf-8")
    assert text.startswith("<?xml")
    for words in ("decode", "prefill", "int4, one sequence", "int4, 8 sequences together", "int8, one sequence"):
        assert words in text
    assert "what the ceiling allows" in text
    assert "a &lt;model&gt; on a CPU" in text


def test_the_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("a", "b"):
        plot.draw([_run("int4", (1,))], str(tmp_path / name))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_run_without_rows_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    empty = Run("m", "int4", "f16", "c", "avx2", 1, "omp", 1, 1.0, 1.0, 1.0, 1.0, None, None, [], [])
    plot.draw([empty], str(tmp_path / "x.svg"))
    assert (tmp_path / "x.svg").stat().st_size > 1000
