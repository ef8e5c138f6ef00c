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
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from glmcpu.errors import UsageError, printable

Arrays = Mapping[str, NDArray[Any]]

ROWS = 16  # outputs in a block


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

    def decode(self, xp: Any, lanes: Mapping[str, Any]) -> Any:
        """What the stored bytes mean, in array operations that NumPy and torch (`xp`) share: rows (n, I filled up).

        lanes: of each array what belongs to n outputs, (n, ...) as in `layout` without blocks; floats come in the
        precision that the result is to have.
        """

    def matmul(
        self,
        program: Any,
        out: NDArray[np.float32],
        x: NDArray[np.float32],
        arrays: Arrays,
        bias: NDArray[np.float32],
    ) -> None:
        """Adds out (T, O) = x (T, I) @ weight.T + bias (O,), all float32 and C-contiguous, to a simd.program."""


@runtime_checkable
class GroupFormat(Format, Protocol):
    """What a format with a scale for each group of inputs defines besides, for codes that are chosen elsewhere."""

    GROUP: int
    """Inputs for each scale."""
    CODES: tuple[int, int]
    """The lowest and the highest code."""

    def store(self, codes: NDArray[np.int8], scales: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """What `pack` returns, for weights code * scale: codes (o, I) i8, scales (o, I/GROUP, rounded up) f32.

        Scales are rounded to half precision. Raises UsageError for what the format cannot hold.
        """


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
    """All formats, by file name: f16 f32 int3_g32 int4 int4_g128 int4_g32 int4_g64 int8."""
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


def is_grouped(name: str) -> bool:
    """Whether the format of that name has a scale for each group of inputs; raises UsageError as `load`."""
    return isinstance(load(name), GroupFormat)


def group_format(name: str) -> GroupFormat:
    """The format of that name; raises UsageError when there is none, or when it has no scales of groups."""
    found = load(name)
    if not isinstance(found, GroupFormat):
        grouped = " ".join(known for known in names() if is_grouped(known))
        raise UsageError(f"weight format {name!r} has no scales of groups; formats with them: {grouped}")
    return found


def unpack(weight: Weight, begin: int = 0, end: int | None = None) -> NDArray[np.float32]:
    """Outputs begin..end of a weight as plain (n, I) float32."""
    return rows(weight, np.arange(begin, weight.O if end is None else end))


def rows(weight: Weight, ids: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.float32]:
    """Rows `ids` of a weight as (n, I) float32: how an embedding is read. The caller has checked the ids."""
    return decoded(load(weight.format), weight.arrays, ids, weight.I)


def decoded(kind: Format, arrays: Arrays, ids: Sequence[int] | NDArray[np.integer[Any]], I: int) -> NDArray[np.float32]:
    """Rows `ids` of what a format has packed as plain (n, I) float32."""
    block, lane = np.divmod(np.asarray(ids, np.intp), ROWS)
    lanes = {key: _single(array[block, :, lane]) for key, array in arrays.items()}
    return np.ascontiguousarray(kind.decode(np, lanes)[:, :I])


def _single(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(np.float32) if array.dtype.kind == "f" else array
