"""The model read with one matrix in memory at a time is the model, from the beginning or from any layer on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_checkpoint import L, write_checkpoint

from glmcpu import Model
from glmcpu.backends import Floats
from glmcpu.convert import convert, layer_by_layer
from glmcpu.convert.layer_by_layer import Cost, Text, Work, multiplied
from glmcpu.convert.origin import Origin
from glmcpu.convert.packed_source import open_packed
from glmcpu.formats import Weight
from glmcpu.models import Part

Report = tuple[str, int, int]


class Multiplying(Work):
    """Multiplies by what each matrix is, and notes all it sees."""

    stage = "reading"

    def __init__(self, origin: Origin, text: Text, first: int = 0, start: Floats | None = None) -> None:
        self.reports: list[Report] = []
        self.inputs: dict[str, tuple[int, int]] = {}
        self.residuals: list[Floats] = []
        self._start = start
        super().__init__(origin, text, lambda *report: self.reports.append(report), first)

    def linear(self, x: Floats, weight: Weight, out: Floats | None = None) -> Floats:
        self.finish()
        self.inputs[weight.name] = x.shape  # type: ignore[assignment]
        for slab in self.slabs(weight.name):
            self.report(weight.name, len(slab))
        if not weight.name.startswith("layers."):
            return np.empty((len(x), 0), np.float32)
        rows = np.concatenate([slab.copy() for slab in self.slabs(weight.name)])
        return (x @ rows.T + weight.bias).astype(np.float32)

    def after_layer(self, n: int, x: Floats) -> None:
        self.finish()
        self.residuals.append(x.copy())

    def residual(self) -> Floats:
        if self._start is None:
            raise NotImplementedError
        return self._start.copy()


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layers")
    return convert(write_checkpoint(folder / "source"), folder / "tiny-f32.safetensors", weights="f32")


@pytest.fixture
def origin(exact: Path) -> Iterator[Origin]:
    with open_packed(exact) as origin:
        yield origin


@pytest.fixture
def text(exact: Path) -> Text:
    """Two sequences, of which the second halves are answers."""
    tokenizer = Model.load(exact, backend="reference").tokenizer
    assert tokenizer is not None
    ids = [tokenizer.encode(words) for words in ("one two three 你好", "four 天气 five")]
    begins, total = [], 0
    for one in ids:
        begins.append(np.arange(total + len(one) - 2, total + len(one)))
        total += len(one)
    return Text(ids, np.concatenate(begins))


def expected(exact: Path, text: Text) -> list[NDArray[np.float32]]:
    """The residuals that the packed model has of all sequences, one after another."""
    model: Any = Model.load(exact, backend="reference").language_model
    found: list[list[NDArray[np.float32]]] = [[] for _ in range(L + 1)]
    for ids in text.sequences:
        parts = [Part(ids, model.new_cache(64))]
        model.forward(parts, every=True, after_layer=lambda n, x: found[n].append(x.copy()))
    return [np.concatenate(layer) for layer in found]


def test_residuals_are_those_of_the_model_itself(exact: Path, origin: Origin, text: Text) -> None:
    work = Multiplying(origin, text)
    work.forward()
    for ours, theirs in zip(work.residuals, expected(exact, text), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3 * np.abs(theirs).max())


def test_reading_goes_on_from_any_layer(exact: Path, origin: Origin, text: Text) -> None:
    whole = Multiplying(origin, text)
    whole.forward()
    for first in range(1, L + 1):
        rest = Multiplying(origin, text, first, whole.residuals[first])
        rest.forward()
        np.testing.assert_array_equal(rest.residuals[-1], whole.residuals[-1])
        assert all(rest.layer(name) >= first for name in rest.inputs)
        assert rest.reports[0][1] > 0
        assert rest.reports[-1] == whole.reports[-1]


def test_each_matrix_is_multiplied_once_and_the_lm_head_by_what_is_predicted_only(origin: Origin, text: Text) -> None:
    work = Multiplying(origin, text)
    work.forward()
    assert sorted(work.inputs) == sorted(multiplied(origin.config))
    for name, (tokens, _) in work.inputs.items():
        assert tokens == (text.tokens if name.startswith("layers.") else len(text.predicted))


def test_a_text_read_twice_side_by_side_gives_the_same_twice(origin: Origin, text: Text) -> None:
    class Twice(Multiplying):
        times = 2

    work = Twice(origin, text)
    work.forward()
    for residual in work.residuals:
        one, two = np.split(residual, 2)
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5 * float(np.abs(one).max()))


@pytest.mark.parametrize("slab_bytes", [1, 16 * 4 * 32, 48 * 4 * 32])
def test_size_of_the_slabs_changes_nothing(
    slab_bytes: int, origin: Origin, text: Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Multiplying(origin, text)
    whole.forward()
    monkeypatch.setattr(layer_by_layer, "SLAB_BYTES", slab_bytes)
    in_slabs = Multiplying(origin, text)
    in_slabs.forward()
    np.testing.assert_array_equal(in_slabs.residuals[0], whole.residuals[0])
    np.testing.assert_array_equal(in_slabs.residuals[-1], whole.residuals[-1])


def test_reports_name_the_layer_and_grow_to_the_whole(origin: Origin, text: Text) -> None:
    work = Multiplying(origin, text)
    work.forward()
    stages = list(dict.fromkeys(stage for stage, _, _ in work.reports))
    assert stages == ["reading layer 1 of 2", "reading layer 2 of 2", "reading the output matrix"]
    done = [done for _, done, _ in work.reports]
    assert done == sorted(done)
    assert {total for _, _, total in work.reports} == {done[-1]}


def test_cost_is_once_and_for_each_row() -> None:
    assert Cost(O=10, once=7, row=3).all == 37
