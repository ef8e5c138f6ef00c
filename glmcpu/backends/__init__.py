"""What a model asks of the arithmetic: a dozen operations on (T, C) arrays. A backend is one file.

Models are given a backend and know none: with `reference` the forward is the oracle, with `cpu` the product.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from glmcpu import memory
from glmcpu.cache import KINDS, KVCache, Segment
from glmcpu.errors import UsageError, printable
from glmcpu.formats import Weight

Floats = NDArray[np.float32]
NAMES = ("cpu", "reference", "torch")

_SLAB = 512  # tokens


@dataclass(frozen=True)
class Batch:
    """Where the T tokens of a forward stand.

    cos, sin   (T, D/2) angles of the positions
    segments   which tokens belong to which sequence
    """

    cos: Floats
    sin: Floats
    segments: Sequence[Segment]


class Backend(Protocol):
    """The operations of a forward pass; all arrays are float32 and C-contiguous, T tokens over all sequences.

    A backend may put work off: arrays returned by an operation are read by other operations only, until `finish`.
    """

    def is_compiled(self, formats: Mapping[str, str]) -> bool:
        """Whether the code for these formats (matrix -> format) need not be compiled first."""

    def exclusive(self) -> AbstractContextManager[object]:
        """Held around a forward: kernels of one process run one call at a time. Everything is finished at its end."""

    def repeat(self, x: Floats, batch: Batch, compute: Callable[[Floats, Batch], Floats]) -> Floats:
        """compute(x, batch), finished, for the residual x (T, C) of few tokens. It is called again and again, and its
        operations are the same for batches of the same segments: a backend may keep and repeat them on other numbers.
        """

    def finish(self) -> None:
        """Returns when the arrays of all operations so far hold their results."""

    def numbers(self, x: Floats) -> Floats:
        """A finished result as a NumPy array."""

    def keep(self, weight: Weight) -> Weight:
        """A weight out of a file as the other operations want it: on their device, in its format still."""

    def keep_vector(self, values: Floats) -> Floats:
        """A norm's vector likewise."""

    def available_bytes(self) -> int | None:
        """Memory there is for weights and caches; None where unknown."""

    def cache_kind(self, formats: Mapping[str, str]) -> str:
        """How a cache beside weights in these formats (matrix -> format) keeps numbers: one of cache.KINDS."""

    def new_cache(self, L: int, H: int, D: int, capacity: int, formats: Mapping[str, str]) -> KVCache:
        """An empty cache of that kind."""

    def rows(self, weight: Weight, ids: NDArray[np.int64]) -> Floats:
        """Rows `ids` (T,) of an embedding: (T, C)."""

    def take(self, x: Floats, which: NDArray[np.int64]) -> Floats:
        """Rows `which` of finished x (T, C)."""

    def block(self, residual: list[Floats], compute: Callable[[list[Floats]], Floats]) -> Floats:
        """compute(residual), which takes the residual (T, C) out of the list and returns the next one.

        A backend that is asked for gradients may forget what was in between and compute it again.
        """

    def in_slabs(self, h: Floats, O: int, compute: Callable[[Floats, Floats | None], Floats]) -> Floats:
        """compute(h, None) (T, O), or compute(some tokens of h, their rows of the result) as often as it takes:
        what is wide in between need not exist for all tokens of a long prompt at once.
        """

    def linear(self, x: Floats, weight: Weight, out: Floats | None = None) -> Floats:
        """x (T, I) @ weight.T + bias: (T, O), written to `out` if it is given."""

    def layer_norm(self, x: Floats, scale: Floats, shift: Floats, epsilon: float) -> Floats:
        """Layer norm over the channels of x (T, C)."""

    def gelu(self, x: Floats) -> Floats:
        """GELU, tanh form; may overwrite x."""

    def scale_add(self, h: Floats, alpha: float, y: Floats) -> Floats:
        """alpha * h + y; may overwrite y."""

    def attend(self, qkv: Floats, layer: int, batch: Batch, heads: int, parts: int) -> Floats:
        """Attention of qkv (T, H*3*D), the heads side by side as [q | k | v], turned in `parts` parts: (T, H*D).

        Writes the new keys and values to the caches; their length stays.
        """


class HostMemory:
    """What a backend does with arrays whose operations read the mapped file and the machine's own memory: nothing."""

    def numbers(self, x: Floats) -> Floats:
        """As it is."""
        return x

    def keep(self, weight: Weight) -> Weight:
        """As it is."""
        return weight

    def keep_vector(self, values: Floats) -> Floats:
        """As it is."""
        return values

    def available_bytes(self) -> int | None:
        """What the machine has."""
        return memory.available_bytes()

    def block(self, residual: list[Floats], compute: Callable[[list[Floats]], Floats]) -> Floats:
        """Computes it."""
        return compute(residual)


def slabs(T: int) -> Iterator[slice]:
    """T tokens, some hundred at a time."""
    for begin in range(0, T, _SLAB):
        yield slice(begin, begin + _SLAB)


def load(
    name: str,
    threads: int | None = None,
    cache: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> Backend:
    """The backend of that name on `threads` threads; raises UsageError when there is none.

    cache          how keys and values are kept, one of cache.KINDS; None: what suits the weights. The reference keeps
                   f32, torch what it computes with
    device, dtype  for torch: "cuda", "mps" or "cpu", and "f32", "f16" or "bf16"; None: the best there is
    """
    if name not in NAMES:
        raise UsageError(f"unknown backend {printable(name)!r}; backends: {' '.join(NAMES)}")
    if cache is not None and cache not in KINDS:
        raise UsageError(f"cache={printable(cache)!r}: known are {' '.join(KINDS)}")
    if name == "reference" and cache not in (None, "f32"):
        raise UsageError(f"cache={cache!r}: the reference backend keeps f32; leave it out, or take another backend")
    placed = {key: value for key, value in (("device", device), ("dtype", dtype)) if value is not None}
    if placed and name != "torch":
        key, value = next(iter(placed.items()))
        raise UsageError(f"{key}={printable(value)!r} is for the torch backend, and {name} runs on the CPU; take torch")
    try:
        module: Any = import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise UsageError(
            'the torch backend needs PyTorch, which is not installed; run pip install "glmcpu[torch]"'
        ) from error
    return cast(Backend, module.Backend(threads, cache, **placed))
