"""How a weight matrix is stored. One file = one format; the file's name is the format's name everywhere.

Every format keeps a weight (O, I) in blocks of 16 outputs, so that one vector holds the same input of 16 outputs, and
owns the loop that multiplies by it. A format file defines what `Format` lists; a new one is found by its file name.
"""

import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from glmcpu.errors import UsageError, printable

Arrays = Mapping[str, NDArray[Any]]


class Format(Protocol):
    """What a format file defines."""

    BITS_PER_WEIGHT: float
    EXACT: bool
    """Whether activations stay float32: then the result differs from the reference by rounding only."""

    def layout(self, O: int, I: int) -> dict[str, tuple[tuple[int, ...], type[np.generic]]]:
        """Shape and dtype of each stored array. The first axis is blocks of 16 outputs, the third one the 16."""

    def pack(self, weight: NDArray[np.float32], scale: NDArray[np.float32] | None = None) -> dict[str, NDArray[Any]]:
        """Stores weight (o, I), o rows from a multiple of 16 on; every row's result depends on that row only.

        `scale` (o,): the row scales of weights that come from an official int4 or int8 checkpoint.
        """

    def rows(self, arrays: Arrays, ids: NDArray[np.intp], I: int) -> NDArray[np.float32]:
        """Rows `ids` as (n, I) float32: the plain NumPy definition of what the stored bytes mean."""

    def matmul(
        self,
        program: Any,
        out: NDArray[np.float32],
        x: NDArray[np.float32],
        arrays: Arrays,
        bias: NDArray[np.float32],
    ) -> None:
        """Adds out (T, O) = x (T, I) @ weight.T + bias (O,), all float32 and C-contiguous, to a simd.program."""


@dataclass(frozen=True)
class Weight:
    """A stored matrix (O, I) with its bias (O,), ready to multiply."""

    format: str
    arrays: Arrays
    bias: NDArray[np.float32]
    O: int
    I: int
    name: str = ""


def names() -> list[str]:
    """All formats, by file name: f16 f32 int4 int4_g32 int8."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


@cache
def load(name: str) -> Format:
    """The format of that name; raises UsageError with the nearest name when there is none."""
    known = names()
    if name not in known:
        near = get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"unknown weight format {printable(name)!r}; {hint}formats: {' '.join(known)}")
    return cast(Format, import_module(f"{__name__}.{name}"))


def unpack(weight: Weight, begin: int = 0, end: int | None = None) -> NDArray[np.float32]:
    """Outputs begin..end of a weight as plain (n, I) float32."""
    ids = np.arange(begin, weight.O if end is None else end, dtype=np.intp)
    return load(weight.format).rows(weight.arrays, ids, weight.I)


def rows(weight: Weight, ids: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.float32]:
    """Rows `ids` of a weight as (n, I) float32: how an embedding is read. The caller has checked the ids."""
    return load(weight.format).rows(weight.arrays, np.asarray(ids, np.intp), weight.I)
