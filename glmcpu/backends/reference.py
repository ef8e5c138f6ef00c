"""The reference backend: every operation of the model in plain NumPy, float32. Read this file first.

It is the definition the fast kernels are tested against: no tiles, no quantized activations, weights unpacked to
float32 at each use. Exact and slow; memory stays small, since nothing unpacked is kept.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import numpy as np
from numpy.typing import NDArray

from glmcpu import formats
from glmcpu.backends import Batch, HostMemory, slabs
from glmcpu.cache import KVCache
from glmcpu.formats import Weight
from glmcpu.kernels import BLOCK

Floats = NDArray[np.float32]


class Backend(HostMemory):
    """Plain NumPy, on as many threads as NumPy likes."""

    def __init__(self, threads: int | None = None, cache: str | None = None) -> None:
        pass

    def is_compiled(self, formats: Mapping[str, str]) -> bool:
        """Nothing is compiled."""
        return True

    def exclusive(self) -> AbstractContextManager[object]:
        """NumPy needs no protection."""
        return nullcontext()

    def repeat(self, x: Floats, batch: Batch, compute: Callable[[Floats, Batch], Floats]) -> Floats:
        """Computes it anew."""
        return compute(x, batch)

    def finish(self) -> None:
        """Everything is done when it is asked for."""

    def cache_kind(self, formats: Mapping[str, str]) -> str:
        """Always float32."""
        return "f32"

    def new_cache(self, L: int, H: int, D: int, capacity: int, formats: Mapping[str, str]) -> KVCache:
        """Always float32."""
        return KVCache(L, H, D, capacity, "f32")

    def rows(self, weight: Weight, ids: NDArray[np.int64]) -> Floats:
        """Rows of the embedding table."""
        return formats.rows(weight, ids)

    def take(self, x: Floats, which: NDArray[np.int64]) -> Floats:
        """A copy of some rows."""
        return np.ascontiguousarray(x[which])

    def in_slabs(self, h: Floats, O: int, compute: Callable[[Floats, Floats | None], Floats]) -> Floats:
        """A prompt's tokens a slab at a time."""
        out = np.empty((len(h), O), np.float32)
        for some in slabs(len(h)):
            compute(h[some], out[some])
        return out

    def linear(self, x: Floats, weight: Weight, out: Floats | None = None) -> Floats:
        """y = x W^T + b, a slab of outputs at a time."""
        if out is None:
            out = np.empty((len(x), weight.O), np.float32)
        for begin in range(0, weight.O, 4096):
            end = min(begin + 4096, weight.O)
            out[:, begin:end] = x @ formats.unpack(weight, begin, end).T + weight.bias[begin:end]
        return out

    def layer_norm(self, x: Floats, scale: Floats, shift: Floats, epsilon: float) -> Floats:
        """Biased variance, epsilon inside the root."""
        centred = x - x.mean(axis=1, keepdims=True)
        variance = (centred * centred).mean(axis=1, keepdims=True)
        return np.asarray(centred / np.sqrt(variance + np.float32(epsilon)) * scale + shift, np.float32)

    def gelu(self, x: Floats) -> Floats:
        """0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."""
        half, cubic, root = np.float32(0.5), np.float32(0.044715), np.float32(0.7978845608028654)
        out: Floats = half * x * (1 + np.tanh(root * x * (1 + cubic * x * x)))
        return out

    def scale_add(self, h: Floats, alpha: float, y: Floats) -> Floats:
        """The residual of ChatGLM-6B: alpha times the *normed* input, plus the branch."""
        out: Floats = np.float32(alpha) * h + y
        return out

    def attend(self, qkv: Floats, layer: int, batch: Batch, heads: int, parts: int) -> Floats:
        """softmax(q k / sqrt(D)) v over the first visible[t] positions, sequence by sequence."""
        q, k, v = split_rotate(qkv, batch.cos, batch.sin, heads, parts)
        out = np.empty((len(qkv), qkv.shape[1] // 3), np.float32)
        for segment in batch.segments:
            here, cache = slice(segment.begin, segment.end), segment.cache
            keys, values = _append(cache, layer, k[here], v[here], segment.places)
            scores = np.einsum("thd,shd->hts", q[here], keys) / np.sqrt(np.float32(q.shape[2]))
            hidden = np.arange(len(keys)) >= segment.visible[:, None]
            scores = np.where(hidden, np.float32(-np.inf), scores)
            probs = np.exp(scores - scores.max(axis=2, keepdims=True))
            probs /= probs.sum(axis=2, keepdims=True)
            out[here] = np.einsum("hts,shd->thd", probs, values).reshape(-1, out.shape[1])
        return out


def split_rotate(qkv: Floats, cos: Floats, sin: Floats, heads: int, parts: int) -> Floats:
    """q, k, v (3, T, H, D) of qkv (T, H*3*D), which lies head by head as [q_h | k_h | v_h]; q and k are turned.

    Within each part of q and k, entry i pairs with entry i + width/2.
    """
    T = len(qkv)
    q, k, v = qkv.reshape(T, heads, 3, -1).transpose(2, 0, 1, 3)  # each (T, H, D)
    out = np.stack([q, k, v])
    width = q.shape[2] // parts
    for part in range(parts):
        low = slice(part * width, part * width + width // 2)
        high = slice(part * width + width // 2, (part + 1) * width)
        turn = slice(part * width // 2, (part + 1) * width // 2)
        c, s = cos[:, None, turn], sin[:, None, turn]
        for rotated, x in ((out[0], q), (out[1], k)):
            rotated[..., low] = x[..., low] * c - x[..., high] * s
            rotated[..., high] = x[..., high] * c + x[..., low] * s
    return out


def _append(cache: KVCache, layer: int, k: Floats, v: Floats, places: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Writes t new positions (t, H, D) and returns all positions of the layer, (S, H, D) each."""
    (_, H, D), after = k.shape, places[-1] + 1
    block, place = places // BLOCK, places % BLOCK
    cache.keys[layer][block, :, place // 16, :D, place % 16] = k
    cache.values[layer][block, :, place, :D] = v
    keys = cache.keys[layer].transpose(0, 2, 4, 1, 3).reshape(-1, H, cache.keys.shape[4])
    values = cache.values[layer].transpose(0, 2, 1, 3).reshape(-1, H, cache.values.shape[4])
    return keys[:after, :, :D], values[:after, :, :D]
