"""Mixed precision: each matrix in the format its errors allow, within a budget of bits a weight.

The model reads a text once, exactly. Of each matrix and each candidate format the error is measured where it ends up,
in the residual: with W x what the matrix gives and Q x what its rounding gives,

    error = sum |(W - Q) x|^2 / sum |W x|^2  *  sum |branch|^2 / sum |residual|^2

the second factor being the share of its branch (attention or mlp) in the residual behind it; what is relative to the
branch's inner products is taken to be so of its result. Every layer norms its input, so errors of different layers
count alike, and the lm_head's error is that of the scores; where it is the embedding too, the error of the rows that
were read is added. Rounding is to the smallest squared error.

Then all matrices begin in the format with the fewest bits, and where a bit takes most error away it is spent, until
the budget is used up. The errors are of one matrix at a time; that they add up is assumed. Three bits hurt more than
their error says (see benchmarks/LOG.md): they are taken only where the budget leaves no choice.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from glmcpu import formats
from glmcpu.backends import Floats
from glmcpu.errors import UsageError
from glmcpu.formats import Weight

from .layer_by_layer import Advance, Text, Work
from .origin import Origin

CANDIDATES = ("int3_g32", "int4_g128", "int4_g64", "int4_g32", "int8")  # rising in bits
_INPUTS = 256  # with which products are compared

Errors = dict[str, dict[str, float]]


def bits_of(name: str) -> float:
    """Bits a weight of a format."""
    return formats.load(name).BITS_PER_WEIGHT


def check(bits: float) -> None:
    """Raises UsageError for a budget that no mixture meets, or that needs none."""
    low, high = bits_of(CANDIDATES[0]), bits_of(CANDIDATES[-1])
    if not low <= bits <= high:
        raise UsageError(f"--bits {bits:g}: mixtures of {' '.join(CANDIDATES)} have {low:g} to {high:g} bits a weight")


def choose(errors: Errors, weights: Mapping[str, int], bits: float) -> dict[str, str]:
    """Matrix -> format, for errors of matrix and format, the number of weights of each, and bits a weight at most."""
    able = CANDIDATES[bits >= bits_of(CANDIDATES[1]) :]
    chosen = dict.fromkeys(errors, able[0])
    left = (bits - bits_of(able[0])) * sum(weights[name] for name in errors)
    while True:
        best, gain, price = None, 0.0, 0.0
        for name, form in chosen.items():
            for better in able[able.index(form) + 1 :]:
                cost = (bits_of(better) - bits_of(form)) * weights[name]
                won = (errors[name][form] - errors[name][better]) / cost
                if cost <= left and won > gain:
                    best, gain, price = (name, better), won, cost
        if best is None:
            return chosen
        chosen[best[0]] = best[1]
        left -= price


def measure(origin: Origin, text: Text, advance: Advance) -> Errors:
    """The error of each matrix in each candidate; advance and errors as in calibrate.run."""
    meter = _Meter(origin, text, advance)
    meter.forward()
    return meter.errors


class _Meter(Work):
    """Multiplies exactly, and compares with what each candidate would have given."""

    stage = "measuring"

    def __init__(self, origin: Origin, text: Text, advance: Advance) -> None:
        super().__init__(origin, text, advance)
        self.errors: Errors = {}
        self._branch: list[str] = []
        self._read: dict[str, float] = {}

    def rows(self, weight: Weight, ids: NDArray[np.int64]) -> Floats:
        x = super().rows(weight, ids)
        read = np.unique(x, axis=0)
        whole = energy(read) or 1.0
        self._read = {name: energy(read - _rounded(read, name)) / whole for name in CANDIDATES}
        return x

    def linear(self, x: Floats, weight: Weight, out: Floats | None = None) -> Floats:
        self.finish()
        in_layer = weight.name.startswith("layers.")
        y = np.empty((len(x), weight.O if in_layer else 0), np.float32)
        some = np.ascontiguousarray(x[:: max(1, len(x) // _INPUTS)])
        whole, wrong, begin = 0.0, dict.fromkeys(CANDIDATES, 0.0), 0
        for slab in self.slabs(weight.name):
            whole += energy(some @ slab.T)
            for name in CANDIDATES:
                wrong[name] += energy(some @ (slab - _rounded(slab, name)).T)
            if in_layer:
                y[:, begin : begin + len(slab)] = x @ slab.T
            begin += len(slab)
            self.report(weight.name, len(slab))
        read = self._read if weight.name == "embedding" else dict.fromkeys(CANDIDATES, 0.0)
        self.errors[weight.name] = {name: error / (whole or 1.0) + read[name] for name, error in wrong.items()}
        self._branch.append(weight.name)
        if in_layer:
            y += weight.bias
        return y

    def scale_add(self, h: Floats, alpha: float, y: Floats) -> Floats:
        self.finish()
        branch = energy(y)
        x = super().scale_add(h, alpha, y)
        self.finish()
        share = branch / (energy(x) or 1.0)
        for name in self._branch:
            self.errors[name] = {form: share * error for form, error in self.errors[name].items()}
        self._branch = []
        return x


def _rounded(weight: Floats, name: str) -> Floats:
    """Rows (o, I) as a format keeps them."""
    form = formats.load(name)
    return formats.decoded(form, form.pack(weight), np.arange(len(weight)), weight.shape[1])


def energy(x: Floats) -> float:
    """The sum of squares."""
    return float(np.square(x, dtype=np.float64).sum())
