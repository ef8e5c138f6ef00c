"""A model that reads a text layer by layer with one matrix in memory at a time, and somebody who looks at each.

The forward is the model's own. Its store knows the names of matrices only; its backend fetches a matrix, a slab of rows
at a time, when it multiplies by it. So a subclass of `Work` sees each matrix once, with all inputs that the text gives
it, in the order of use, and decides what is passed on. Attention uses one cache for all layers.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from glmcpu import backends, models
from glmcpu.backends import Batch, Floats, HostMemory
from glmcpu.cache import KVCache
from glmcpu.formats import Weight
from glmcpu.kernels.threads import threads
from glmcpu.models import Part
from glmcpu.models.chatglm import Config

from .chatglm import GENERATION
from .origin import Origin
from .writer import HALF_MAX, finite_vector, float_slabs

SLAB_BYTES = 64 << 20

Advance = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Text:
    """Sequences of ids to read, and the places, counted over all of them, after which an answer's id is predicted."""

    sequences: list[list[int]]
    predicted: NDArray[np.int64]

    @property
    def tokens(self) -> int:
        """All ids."""
        return sum(map(len, self.sequences))


def multiplied(config: Config) -> list[str]:
    """The matrices that are multiplied by: all but the embedding of a model with an lm_head of its own."""
    names = list(models.load(GENERATION).matrices(config))
    return names if config.tied else [name for name in names if name != "embedding"]


@dataclass(frozen=True)
class Cost:
    """What a matrix of O rows takes: once, and for each row."""

    O: int
    once: int
    row: int

    @property
    def all(self) -> int:
        """In all."""
        return self.once + self.O * self.row


class Work(HostMemory):
    """A store whose matrices are only names, and a backend that reads them when it multiplies: one at a time.

    Layers before `first` are done, and their result is `residual`. A subclass says what a product is (`linear`) and
    what it takes (`costs`, matrix -> work for each row, and once).
    """

    formats: Mapping[str, str]
    stage: str
    times = 1  # how often the text is read side by side

    def __init__(self, origin: Origin, text: Text, advance: Advance, first: int = 0) -> None:
        self.formats = dict.fromkeys(origin.sources, "f32")
        self.origin, self.text, self.first = origin, text, first
        self._advance = advance
        self._inner = backends.load("cpu", threads(), "f32")
        self.costs = {name: self.cost(name) for name in multiplied(origin.config)}
        self._all = sum(cost.all for cost in self.costs.values())
        self._done = sum(cost.all for name, cost in self.costs.items() if self.layer(name) < first)

    def forward(self) -> None:
        """Reads the text, behind the layers that are done."""
        left = replace(self.origin.config, layers=self.origin.config.layers - self.first)
        model = models.load(GENERATION).build(left, self, self)
        cache = model.new_cache(max(map(len, self.text.sequences)))
        # One cache does for all: attention writes a sequence's keys and values and reads them before it does the next.
        parts = self.times * [Part(ids, cache) for ids in self.text.sequences]
        wanted = np.concatenate([self.text.predicted + n * self.text.tokens for n in range(self.times)])
        model.forward(parts, wanted=wanted, after_layer=self.after_layer)

    def after_layer(self, n: int, x: Floats) -> None:
        """Called with the residual before each layer that was left, and once after the last."""

    def residual(self) -> Floats:
        """What the layers that are done have made of the text."""
        raise NotImplementedError

    def cost(self, name: str) -> Cost:
        """What a product takes."""
        return Cost(self.origin.sources[name].O, 0, 1)

    # --- the store ---

    def weight(self, name: str, O: int, I: int) -> Weight:
        ours = self._ours(name)
        has_bias = f"{ours}.bias" in self.origin.vectors
        bias = self.vector(f"{name}.bias", O) if has_bias else np.zeros(O, np.float32)
        return Weight("f32", {}, bias, O, I, ours)

    def vector(self, name: str, n: int) -> Floats:
        theirs, _ = self.origin.vectors[self._ours(name)]
        return finite_vector(self.origin.tensors, theirs, self.origin.name)

    def _ours(self, name: str) -> str:
        """The name in the whole model: layers that are done are not among those of the model that runs."""
        head, _, rest = name.partition(".")
        number, _, part = rest.partition(".")
        return f"layers.{int(number) + self.first}.{part}" if head == "layers" else name

    def layer(self, name: str) -> int:
        """The layer of a matrix; for those of none, behind all."""
        return int(name.split(".")[1]) if name.startswith("layers.") else self.origin.config.layers

    # --- the backend ---

    def is_compiled(self, formats: Mapping[str, str]) -> bool:
        return self._inner.is_compiled(formats)

    def exclusive(self) -> AbstractContextManager[object]:
        return self._inner.exclusive()

    def repeat(self, x: Floats, batch: Batch, compute: Callable[[Floats, Batch], Floats]) -> Floats:
        return compute(x, batch)

    def finish(self) -> None:
        self._inner.finish()

    def cache_kind(self, formats: Mapping[str, str]) -> str:
        return "f32"

    def new_cache(self, L: int, H: int, D: int, capacity: int, formats: Mapping[str, str]) -> KVCache:
        return KVCache(1, H, D, capacity, "f32")

    def rows(self, weight: Weight, ids: NDArray[np.int64]) -> Floats:
        if self.first:
            return self.residual()
        x, begin = np.empty((len(ids), weight.I), np.float32), 0
        for slab in self.slabs(weight.name):
            here = (ids >= begin) & (ids < begin + len(slab))
            x[here] = slab[ids[here] - begin]
            begin += len(slab)
        return x

    def take(self, x: Floats, which: NDArray[np.int64]) -> Floats:
        return self._inner.take(x, which)

    def in_slabs(self, h: Floats, O: int, compute: Callable[[Floats, Floats | None], Floats]) -> Floats:
        return compute(h, None)

    def linear(self, x: Floats, weight: Weight, out: Floats | None = None) -> Floats:
        """x (T, I) @ weight.T + bias; of the lm_head, whose scores are of no use, nothing (T, 0)."""
        raise NotImplementedError

    def layer_norm(self, x: Floats, scale: Floats, shift: Floats, epsilon: float) -> Floats:
        return self._inner.layer_norm(x, scale, shift, epsilon)

    def gelu(self, x: Floats) -> Floats:
        return self._inner.gelu(x)

    def scale_add(self, h: Floats, alpha: float, y: Floats) -> Floats:
        return self._inner.scale_add(h, alpha, y)

    def attend(self, qkv: Floats, layer: int, batch: Batch, heads: int, parts: int) -> Floats:
        return self._inner.attend(qkv, 0, batch, heads, parts)

    # --- the work ---

    def slabs(self, name: str) -> Iterator[Floats]:
        """Rows (o, I) of a matrix; each slab is valid until the next is asked for."""
        source = self.origin.sources[name]
        for weight, _ in float_slabs(self.origin.tensors, source, self.origin.name, SLAB_BYTES, HALF_MAX):
            yield weight

    def report(self, name: str, work: int) -> None:
        """So much more of a matrix is done."""
        self._done += work
        layer, layers = self.layer(name), self.origin.config.layers
        where = f"layer {layer + 1} of {layers}" if layer < layers else "the output matrix"
        self._advance(f"{self.stage} {where}", self._done, self._all)
