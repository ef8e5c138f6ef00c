"""Where does a format hurt? The error of each matrix, on what the reference model feeds into it.

    error = sum |(W - W_ref) x + b - b_ref|^2 / sum |W_ref x|^2        over inputs x of the reference's run

So it is the error that one matrix adds, not what earlier ones have added up: those inputs are exact. Of the embedding
it is the error of the rows that were read. Some hundred ids tell it to two digits. Matrices are unpacked a slab of rows
at a time, so that memory stays small beside a model of any size. Left out: the rounding of activations, which the
backend does for quantized formats; a KL divergence has it.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from glmcpu import formats, texts
from glmcpu.backends import Floats, cpu
from glmcpu.errors import DataError, shown
from glmcpu.formats import Weight
from glmcpu.model import read_config
from glmcpu.models import Part
from glmcpu.packed import PackedFile

Progress = Callable[[int, int], None]
Errors = dict[str, float]

_IDS = 256
_ANSWERS = 64  # of the lm_head, whose outputs are many
_SLAB_WEIGHTS = 1 << 21


def layer_errors(
    reference: Path,
    models: Sequence[Path],
    sequences: Iterable[texts.Sequence],
    threads: int | None = None,
    progress: Progress | None = None,
) -> list[Errors]:
    """The error of each matrix of each model: embedding, layers.N.qkv, .., lm_head, in the order of use.

    The reference reads the first sequences, some _IDS ids in all. progress(weights done, weights in all). Raises
    DataError when a model's matrices are others than the reference's.
    """
    packed = PackedFile(reference)
    generation, config = read_config(packed)
    shapes = generation.matrices(config)
    others = [PackedFile(path) for path in models]
    for other in others:
        kind, its_config = read_config(other)
        if kind.matrices(its_config) != shapes:
            raise DataError(
                f"{shown(other.path)}: has other matrices than {shown(reference)}, so that their errors cannot be "
                "told; leave out --plot and --layers, or choose models of one origin"
            )
    group = _first(sequences)
    multiplied = sum(O * I for name, (O, I) in shapes.items() if name != "embedding" or "lm_head" not in shapes)
    meter = _Meter(others, multiplied, progress)
    model = generation.build(config, packed, _Watching(meter, threads))
    parts = [Part(sequence.ids, model.new_cache(len(sequence.ids))) for sequence in group]
    # The observer has each operation done anew, none repeated as it was written down.
    model.forward(parts, after_layer=lambda n, x: None, wanted=_answers(group))
    return meter.errors(list(shapes) if "lm_head" in shapes else [*shapes, "lm_head"])


class _Meter:
    """Sums of squares for each matrix, of the reference and of each other model's difference."""

    def __init__(self, others: Sequence[PackedFile], weights: int, progress: Progress | None) -> None:
        """weights: how many there will be in all, for the progress."""
        self._others, self._weights, self._progress = others, weights, progress
        self._whole: defaultdict[str, float] = defaultdict(float)
        self._wrong: list[defaultdict[str, float]] = [defaultdict(float) for _ in others]
        self._done = 0

    def product(self, x: Floats, weight: Weight) -> None:
        """Adds what a matrix of the reference makes of x (T, I)."""
        x = np.ascontiguousarray(x[:: max(1, len(x) // _IDS)])
        name = "lm_head" if weight.name == "embedding" else weight.name  # the embedding may serve as both
        theirs = [other.weight(weight.name, weight.O, weight.I) for other in self._others]
        rows = max(16, _SLAB_WEIGHTS // weight.I)
        for begin in range(0, weight.O, rows):
            end = min(begin + rows, weight.O)
            exact = formats.unpack(weight, begin, end)
            self._whole[name] += _energy(x @ exact.T)
            for wrong, other in zip(self._wrong, theirs, strict=True):
                change = formats.unpack(other, begin, end)
                change -= exact
                wrong[name] += _energy(x @ change.T + (other.bias - weight.bias)[begin:end])
            if self._progress:
                self._progress(self._done + end * weight.I, self._weights)
        self._done += weight.O * weight.I

    def rows(self, ids: NDArray[np.int64], weight: Weight) -> None:
        """Adds what was read of the embedding."""
        exact = formats.rows(weight, ids)
        self._whole[weight.name] += _energy(exact)
        for wrong, other in zip(self._wrong, self._others, strict=True):
            wrong[weight.name] += _energy(formats.rows(other.weight(weight.name, weight.O, weight.I), ids) - exact)

    def errors(self, names: Sequence[str]) -> list[Errors]:
        """The error of each matrix; of one that gives nothing but zeros it is 0 or infinite."""
        return [{name: _ratio(wrong[name], self._whole[name]) for name in names} for wrong in self._wrong]


class _Watching(cpu.Backend):
    """The CPU backend, and a meter that sees what goes into each matrix."""

    def __init__(self, meter: _Meter, threads: int | None) -> None:
        super().__init__(threads)
        self._meter = meter

    def rows(self, weight: Weight, ids: NDArray[np.int64]) -> Floats:
        """Rows of the embedding, seen."""
        self._meter.rows(ids, weight)
        return super().rows(weight, ids)

    def in_slabs(self, h: Floats, O: int, compute: Callable[[Floats, Floats | None], Floats]) -> Floats:
        """All tokens at once, so that each matrix is seen once."""
        return compute(h, None)

    def linear(self, x: Floats, weight: Weight, out: Floats | None = None) -> Floats:
        """A product, whose input is finished and seen first."""
        self.finish()
        self._meter.product(x, weight)
        return super().linear(x, weight, out)


def _first(sequences: Iterable[texts.Sequence]) -> list[texts.Sequence]:
    """As many sequences as have _IDS ids together, or all."""
    group: list[texts.Sequence] = []
    for sequence in sequences:
        group.append(sequence)
        if sum(len(s.ids) for s in group) >= _IDS:
            break
    return group


def _answers(group: Sequence[texts.Sequence]) -> NDArray[np.int64]:
    """At most _ANSWERS places from which an id is predicted, numbered over all sequences."""
    places, at = [], 0
    for sequence in group:
        places.append(np.arange(at + sequence.begin - 1, at + len(sequence.ids) - 1))
        at += len(sequence.ids)
    every = np.concatenate(places)
    return every[:: -(-len(every) // _ANSWERS)]


def _energy(x: Floats) -> float:
    return float(np.square(x, dtype=np.float64).sum())


def _ratio(wrong: float, whole: float) -> float:
    return wrong / whole if whole else (math.inf if wrong else 0.0)
