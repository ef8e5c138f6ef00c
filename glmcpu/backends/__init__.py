"""What a model asks of the arithmetic: a dozen operations on (T, C) arrays. A backend is one file.

Models are given a backend and know none: with `reference` the forward is the oracle, with `cpu` the product.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from glmcpu.cache import KVCache, Segment
from glmcpu.errors import UsageError, printable
from glmcpu.formats import Weight

Floats = NDArray[np.float32]
NAMES = ("cpu", "reference")


class Backend(Protocol):
    """The operations of a forward pass; all arrays are float32 and C-contiguous, T tokens over all sequences."""

    def is_compiled(self, formats: Mapping[str, str]) -> bool:
        """Whether the code for these formats (matrix -> format) need not be compiled first."""

    def exclusive(self) -> AbstractContextManager[object]:
        """Held around a forward: kernels of one process run one call at a time."""

    def new_cache(self, L: int, H: int, D: int, capacity: int, formats: Mapping[str, str]) -> KVCache:
        """An empty cache; `formats` (matrix -> format) decides its precision."""

    def rows(self, weight: Weight, ids: NDArray[np.int64]) -> Floats:
        """Rows `ids` (T,) of an embedding: (T, C)."""

    def linear(self, x: Floats, weight: Weight) -> Floats:
        """x (T, I) @ weight.T + bias: (T, O)."""

    def layer_norm(self, x: Floats, scale: Floats, shift: Floats, epsilon: float) -> Floats:
        """Layer norm over the channels of x (T, C)."""

    def gelu(self, x: Floats) -> Floats:
        """GELU, tanh form; may overwrite x."""

    def scale_add(self, h: Floats, alpha: float, y: Floats) -> Floats:
        """alpha * h + y; may overwrite y."""

    def split_rotate(self, qkv: Floats, cos: Floats, sin: Floats, heads: int, parts: int) -> Floats:
        """q, k, v (3, T, H, P) of the fused projection, q and k rotated; P is D or D filled up with zeros."""

    def attend(self, qkv: Floats, layer: int, segments: Sequence[Segment], D: int) -> Floats:
        """Appends k and v to the caches (their length stays) and returns the attention (T, H*D)."""


def load(name: str, threads: int | None = None) -> Backend:
    """The backend of that name on `threads` threads; raises UsageError when there is none."""
    if name not in NAMES:
        raise UsageError(f"unknown backend {printable(name)!r}; backends: {' '.join(NAMES)}")
    module: Any = import_module(f"{__name__}.{name}")
    return cast(Backend, module.Backend(threads))
