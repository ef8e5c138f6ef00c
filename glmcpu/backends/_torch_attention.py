"""Attention on a torch device, and the cache it reads: keys and values of a sequence as plain tensors.

    keys, values   (L, H, S, D), the prefix first, in the precision of the computation

Every query attends to the first `visible` positions (see kernels/attention.py), which is a mask of booleans for torch's
scaled_dot_product_attention; where a single token sees all there is, none is needed. A step that is recorded as a CUDA
graph must have the same shapes again and again: it reads STRIDE positions more than are filled now and then, masked.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from glmcpu.backends import Batch
from glmcpu.backends._torch_weights import tensor_of

STRIDE = 256
_SERIALS = itertools.count()


class TorchCache:
    """What cache.KVCache is, on a device."""

    def __init__(self, L: int, H: int, D: int, capacity: int, dtype: torch.dtype, device: torch.device) -> None:
        """Zeros, since what is masked is multiplied by 0 and must be finite."""
        self.serial = next(_SERIALS)
        self.length = self.prefix = 0
        self.capacity = capacity
        self.kind = "f32" if dtype == torch.float32 else "f16"
        self.keys, self.values = (torch.zeros(L, H, capacity, D, dtype=dtype, device=device) for _ in range(2))

    def append(self, layer: int, k: Tensor, v: Tensor, places: Tensor, S: int) -> tuple[Tensor, Tensor]:
        """Writes t new positions (t, H, D) and returns the layer's first S, (H, S, D) each."""
        keys, values = self.keys[layer], self.values[layer]
        keys.index_copy_(1, places, k.transpose(0, 1))
        values.index_copy_(1, places, v.transpose(0, 1))
        return keys[:, :S], values[:, :S]

    def write(self, layer: int, keys: NDArray[np.float32], values: NDArray[np.float32]) -> None:
        """Writes keys and values (n, H, D) to a layer's first n positions."""
        for mine, theirs in ((self.keys, keys), (self.values, values)):
            mine[layer][:, : len(theirs)] = tensor_of(theirs, mine.device).transpose(0, 1)

    def plain(self, layer: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Keys and values of the filled positions, the prefix included, as (positions, H, D) float32."""
        n = self.prefix + self.length
        keys, values = (t[layer][:, :n].transpose(0, 1).float().cpu().numpy() for t in (self.keys, self.values))
        return keys, values

    def begin_with(self, other: "TorchCache") -> None:
        """Takes all of another cache as the prefix of this one, which is empty and has room for it."""
        self.keys[:, :, : other.capacity] = other.keys
        self.values[:, :, : other.capacity] = other.values
        self.prefix = other.capacity
        self.capacity -= other.capacity

    def copy_from(self, other: "TorchCache") -> None:
        """Becomes the same as another cache of the same size."""
        self.keys.copy_(other.keys)
        self.values.copy_(other.values)
        self.length, self.prefix, self.capacity = other.length, other.prefix, other.capacity

    @property
    def position_bytes(self) -> float:
        """What one position takes."""
        return self.nbytes / int(self.keys.shape[2])

    @property
    def nbytes(self) -> int:
        """Memory it takes."""
        return int(2 * self.keys.nbytes)


@dataclass(frozen=True)
class Reader:
    """One sequence's tokens: which they are, where they are written, and what they see of the first S positions."""

    here: slice
    cache: TorchCache
    places: Tensor
    mask: Tensor | None  # (t, S) bool, True is visible
    S: int


@dataclass(frozen=True)
class Places:
    """A backends.Batch on a device."""

    cos: Tensor
    sin: Tensor
    sequences: Sequence[Reader]

    def inputs(self) -> list[Tensor]:
        """The tensors that differ from one step to the next."""
        masks = [s.mask for s in self.sequences if s.mask is not None]
        return [self.cos, self.sin, *(s.places for s in self.sequences), *masks]

    def shape(self) -> Any:
        """What must be the same for a step to be repeated."""
        return tuple((s.cache.serial, s.here.start, s.here.stop, s.S) for s in self.sequences)


def place(batch: Batch, device: torch.device, steady: bool) -> Places:
    """The batch on the device; `steady`: with shapes that stay the same for some steps."""
    sequences = []
    for segment in batch.segments:
        cache: Any = segment.cache
        S = int(segment.visible.max())
        if steady:
            S = min(-(-S // STRIDE) * STRIDE, cache.prefix + cache.capacity)
        seen = np.arange(S) < segment.visible[:, None]
        mask = tensor_of(seen, device) if steady or not seen.all() else None
        here = slice(segment.begin, segment.end)
        sequences.append(Reader(here, cache, tensor_of(segment.places, device), mask, S))
    return Places(tensor_of(batch.cos, device), tensor_of(batch.sin, device), sequences)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, parts: int) -> Tensor:
    """Turns heads x (..., T, n, D) by angles (..., T, D/2), as float32; in each of `parts` parts entry i pairs with
    i + width/2.
    """
    low, high = x.float().unflatten(-1, (parts, 2, -1)).unbind(-2)
    c, s = (t.unflatten(-1, (parts, -1)).unsqueeze(-3) for t in (cos, sin))  # (..., T, 1, parts, width/2)
    return torch.stack([low * c - high * s, high * c + low * s], -2).flatten(-3)


def attend(qkv: Tensor, layer: int, places: Places, heads: int, parts: int) -> Tensor:
    """softmax(q k / sqrt(D)) v of qkv (T, H*3*D), sequence by sequence: (T, H*D)."""
    q, k, v = qkv.unflatten(1, (heads, 3, -1)).unbind(2)  # (T, H, D)
    q, k = (rotate(t, places.cos, places.sin, parts).to(qkv.dtype) for t in (q, k))
    out = qkv.new_empty(q.shape)
    for s in places.sequences:
        keys, values = s.cache.append(layer, k[s.here], v[s.here], s.places, s.S)
        queries = q[s.here].transpose(0, 1)[None]
        attended = functional.scaled_dot_product_attention(queries, keys[None], values[None], attn_mask=s.mask)
        out[s.here] = attended[0].transpose(0, 1)
    return out.flatten(1)
