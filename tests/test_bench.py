"""The measurements of a model: what is measured, and the arithmetic of what is said about it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_random import CHATGLM, TINY, hasty, quiet

from glmcpu import bench, memory, models, random_weights
from glmcpu.bench import Decode, LeftOut, Opened, Plan, Prefill, Run
from glmcpu.kernels.ceiling import Ceilings
from glmcpu.model import Model
from glmcpu.packed import PackedFile

__all__ = ["hasty"]
PLAN = Plan((4, 20), (20, 33), (1, 3), 5, 2)


@pytest.fixture
def ceilings(hasty: None) -> Ceilings:
    return Ceilings(1)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _written(tmp_path_factory.mktemp("bench") / "tiny.safetensors", "int4_g32")


def _written(target: Path, weights: str, **changes: Any) -> Path:
    random_weights.write(target, "chatglm", CHATGLM.Config(**{**TINY, **changes}), weights, quiet)
    return target


def test_every_row_is_measured_once_and_the_run_holds_them_all(file: Path, ceilings: Ceilings) -> None:
    first, *rows, run = bench.measure(file, PLAN, ceilings)
    assert isinstance(first, Opened)
    assert isinstance(run, Run)
    assert [row.tokens for row in run.prefill] == [4, 20]
    assert [(row.context, row.batch) for row in run.decode] == [(20, 1), (20, 3), (33, 1), (33, 3)]
    assert sorted(map(id, rows)) == sorted(map(id, [*run.prefill, *run.decode]))
    assert (run.model, run.format, run.threads) == ("tiny.safetensors", "int4_g32", 1)
    assert run.first_token_s == run.prefill[0].first_token_s


def test_speeds_bytes_and_shares_fit_together(file: Path, ceilings: Ceilings) -> None:
    *_, run = bench.measure(file, PLAN, ceilings)
    assert isinstance(run, Run)
    C, F, V = (TINY[name] for name in ("channels", "feed_forward", "vocabulary"))
    for p in run.prefill:
        assert p.tok_per_s * p.first_token_s == pytest.approx(p.tokens)
        macs = p.tokens * TINY["layers"] * (4 * C * C + 2 * C * F) + V * C
        assert p.gmac_per_s * 1e9 * p.first_token_s == pytest.approx(macs)
        assert p.of_ceiling == pytest.approx(p.gmac_per_s / p.peak_gmac_per_s)
        assert p.spread[0] <= p.tok_per_s <= p.spread[1]
    for d in run.decode:
        assert d.tok_per_s * d.ms_p50 / 1e3 == pytest.approx(d.batch)
        # 36 channels a head are kept as 48; keys and values in half precision; 5 steps after the context
        cache = 2 * TINY["layers"] * TINY["heads"] * 48 * 2 * (d.context + 3) * d.batch
        assert d.gb_per_s * 1e9 * d.ms_p50 / 1e3 == pytest.approx(run.weights_bytes + cache)
        assert d.of_ceiling == pytest.approx(d.gb_per_s / d.read_gb_per_s)
        assert d.spread[0] <= d.tok_per_s <= d.spread[1]


def test_all_tensors_are_read_for_a_step_but_an_untied_embedding_is_not(tmp_path: Path) -> None:
    sizes = []
    for tied in (True, False):
        path = _written(tmp_path / f"{tied}.safetensors", "int8", tied=tied)
        work = bench._work(path)
        tensors = PackedFile(path).tensors()
        left_out = sum(e.end - e.begin for name, e in tensors.items() if not tied and name.startswith("embedding."))
        assert work.weights_bytes == sum(e.end - e.begin for e in tensors.values()) - left_out
        sizes.append(work.weights_bytes)
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(("weights", "peak"), [("f16", "fma"), ("int4", "dot")])
def test_prefill_is_compared_with_the_arithmetic_of_its_format(
    weights: str, peak: str, tmp_path: Path, ceilings: Ceilings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ceilings, peak, lambda: 123.0)
    plan = Plan((4,), (4,), (1,), 1, 1)
    _, row, *_ = bench.measure(_written(tmp_path / "m.safetensors", weights), plan, ceilings)
    assert isinstance(row, Prefill)
    assert row.peak_gmac_per_s == 123


def test_sequences_decoded_together_have_memory_of_their_own(file: Path, ceilings: Ceilings) -> None:
    model = Model.load(file, threads=1)
    ids = bench.prompt(model.config, 20)
    tested = bench._Bench(model, ids, replace(PLAN, repeats=1), ceilings, bench._work(file))
    tested.prefill(1)
    assert isinstance(tested.decode(3), Decode)
    first, *others = tested._caches
    assert [cache.length for cache in tested._caches] == [25, 25, 25]
    for other in others:
        for name in ("keys", "values"):
            assert np.array_equal(getattr(other, name), getattr(first, name))
            assert not np.shares_memory(getattr(other, name), getattr(first, name))


def test_what_does_not_fit_into_memory_is_left_out(
    file: Path, ceilings: Ceilings, monkeypatch: pytest.MonkeyPatch
) -> None:
    have = iter([1 << 40])  # enough to load it
    monkeypatch.setattr(memory, "available_bytes", lambda: next(have, 7))
    *rows, run = bench.measure(file, PLAN, ceilings)
    assert isinstance(run, Run)
    assert [(r.context, r.batch, r.available_bytes) for r in rows if isinstance(r, LeftOut)] == [(20, 3, 7), (33, 3, 7)]
    assert [(r.context, r.batch) for r in run.decode] == [(20, 1), (33, 1)]


def test_the_file_is_forgotten_as_soon_as_it_is_open(file: Path, ceilings: Ceilings) -> None:
    calls: list[str] = []
    events = bench.measure(file, PLAN, ceilings, lambda: calls.append("opened"))
    assert isinstance(next(events), Opened)
    assert calls == ["opened"]


@pytest.mark.parametrize("length", [2, 3, 50])
def test_a_prompt_has_its_length_and_its_special_ids_at_the_end(length: int) -> None:
    config = CHATGLM.Config(**TINY)
    ids = bench.prompt(config, length)
    assert len(ids) == length
    assert ids[-2:] == [config.gmask, config.bos]
    assert all(i < config.mask for i in ids[:-2])
    models.load("chatglm").check(config, "tiny")
