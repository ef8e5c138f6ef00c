"""The KV cache of one sequence: what attention has seen so far.

Allocated once for the whole context, written in order, never moved. Memory is only taken as positions are filled: the
system hands out zeroed pages when they are first written. Layout of a layer, see kernels/attention.py:

    keys    (H, S/16, P, 16)     values  (H, S, P)       P = D filled up to a multiple of 16, S = capacity to one of 64

Numbers are float32, float16 (uint16), or int8 with a float32 scale for each head and position: half the memory, for an
error of half a step of 1/127 of the largest of the head's channels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glmcpu import formats
from glmcpu.memory import alloc


class KVCache:
    """Keys and values of L layers for up to `capacity` positions, `length` of them filled."""

    def __init__(self, L: int, H: int, D: int, capacity: int, kind: str) -> None:
        """Raises MachineError when there is no memory for it. kind is one of KINDS."""
        dtype = KINDS[kind]
        self.H, self.D, self.kind = H, D, kind
        self.length = 0
        S, P = -(-capacity // 64) * 64, -(-D // 16) * 16
        self.capacity = capacity
        self.keys = alloc((L, H, S // 16, P, 16), dtype, "the KV cache")
        self.values = alloc((L, H, S, P), dtype, "the KV cache")
        scales = (L, H, S if dtype is np.int8 else 0)
        self.key_scales, self.value_scales = (alloc(scales, np.float32, "the KV cache") for _ in range(2))

    def layer(self, n: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.float32], NDArray[np.float32]]:
        """Layer n as kernels/attention.py reads it."""
        return self.keys[n], self.values[n], self.key_scales[n], self.value_scales[n]

    def plain(self, layer: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Keys and values of the filled positions as (length, H, D) float32."""
        keys, values, key_scales, value_scales = self.layer(layer)
        if keys.dtype == np.uint16:
            keys, values = keys.view(np.float16), values.view(np.float16)
        k = keys.transpose(1, 3, 0, 2).reshape(-1, self.H, keys.shape[2])[: self.length, :, : self.D].astype(np.float32)
        v = values.transpose(1, 0, 2)[: self.length, :, : self.D].astype(np.float32)
        if key_scales.size:
            k *= key_scales.T[: self.length, :, None]
            v *= value_scales.T[: self.length, :, None]
        return k, v


KINDS: dict[str, type[np.generic]] = {"f32": np.float32, "f16": np.uint16, "int8": np.int8}
"""How numbers are kept, by name."""


def kind_beside(weight_formats: Mapping[str, str]) -> str:
    """f16 beside quantized weights; f32 beside f32 and f16 ones, which are kept for exactness."""
    return "f32" if all(formats.load(name).EXACT for name in weight_formats.values()) else "f16"


def bytes_for(L: int, H: int, D: int, capacity: int, kind: str) -> int:
    """Memory a full cache takes."""
    numbers = -(-D // 16) * 16 * np.dtype(KINDS[kind]).itemsize
    return 2 * L * H * (-(-capacity // 64) * 64) * (numbers + (4 if kind == "int8" else 0))


@dataclass(frozen=True)
class Segment:
    """One sequence's share of the flat token axis: tokens begin..end.

    places (end - begin,) int64: the position in the cache each token is written to
    visible (end - begin,) int64: how many of the cache's positions, these tokens included, each token attends to
    """

    begin: int
    end: int
    places: NDArray[np.int64]
    visible: NDArray[np.int64]
    cache: KVCache
