"""An adapter at work: a backend that does what another does, and the adapter's part beside it.

    linear       y = x W^T + b, and for a matrix with LoRA  y += (x down^T) up^T: two thin products, W stays packed.
                 Beside quantized weights the thin ones are halves, divided by their largest and multiplied again
    new_cache    begins with the prefix's keys and values, written once as this backend keeps them, copied from then on

Models know nothing of it, and neither do backends.
"""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from glmcpu import formats
from glmcpu.adapters.lora import LowRank
from glmcpu.adapters.ptuning import Prefix
from glmcpu.backends import Backend, Floats
from glmcpu.cache import KVCache
from glmcpu.formats import Weight


class Beside:
    """All operations of `inner`; those of a product and of a new cache are changed."""

    def __init__(
        self, inner: Backend, prefix: Prefix | None, low_rank: Mapping[str, LowRank], kinds: Mapping[str, str]
    ) -> None:
        self._inner, self._prefix = inner, prefix
        self._thin = {name: self._keep(name, pair, kinds[name]) for name, pair in low_rank.items()}
        self._written: KVCache | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def linear(self, x: Floats, weight: Weight, out: Floats | None = None) -> Floats:
        """The product, and what LoRA adds to it."""
        y = self._inner.linear(x, weight, out)
        if weight.name not in self._thin:
            return y
        down, up, alpha = self._thin[weight.name]
        added = self._inner.scale_add(self._inner.linear(self._inner.linear(x, down), up), alpha, y)
        if out is None or added is out:
            return added
        out[:] = added
        return out

    def new_cache(self, L: int, H: int, D: int, capacity: int, formats: Mapping[str, str]) -> KVCache:
        """An empty cache behind the prefix."""
        if self._prefix is None:
            return self._inner.new_cache(L, H, D, capacity, formats)
        P = self._prefix.tokens
        with self._inner.exclusive():
            if self._written is None:
                written = self._inner.new_cache(L, H, D, P, formats)
                for layer in range(L):
                    written.write(layer, self._prefix.keys[layer], self._prefix.values[layer])
                self._written = written
            cache = self._inner.new_cache(L, H, D, P + capacity, formats)
            cache.begin_with(self._written)
        return cache

    def _keep(self, name: str, pair: LowRank, kind: str) -> tuple[Weight, Weight, float]:
        """The thin matrices as the backend wants them, and what their product is to be multiplied by."""
        if formats.load(kind).EXACT:
            return self._weight(pair.down, f"{name}.down", "f32"), self._weight(pair.up, f"{name}.up", "f32"), 1.0
        largest = [float(np.abs(matrix).max()) or 1.0 for matrix in (pair.down, pair.up)]
        down = self._weight(pair.down / np.float32(largest[0]), f"{name}.down", "f16")
        return down, self._weight(pair.up / np.float32(largest[1]), f"{name}.up", "f16"), largest[0] * largest[1]

    def _weight(self, matrix: Floats, name: str, kind: str) -> Weight:
        O, I = matrix.shape
        arrays = formats.load(kind).pack(matrix)
        return self._inner.keep(Weight(kind, arrays, np.zeros(O, np.float32), O, I, name))


def attach(inner: Backend, prefix: Prefix | None, low_rank: Mapping[str, LowRank], kinds: Mapping[str, str]) -> Backend:
    """The backend with an adapter beside weights in these formats (matrix -> format)."""
    return cast(Backend, Beside(inner, prefix, low_rank, kinds))
