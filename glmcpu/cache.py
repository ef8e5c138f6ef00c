"""The KV cache of one sequence: what attention has seen so far.

Allocated once for the whole context, written in order, never moved. Memory is only taken as positions are filled: the
system hands out zeroed pages when they are first written. Layout of a layer, see kernels/attention.py:

    keys    (H, S/16, P, 16)     values  (H, S, P)       P = D filled up to a multiple of 16, S = capacity
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from glmcpu import formats
from glmcpu.memory import alloc


class KVCache:
    """Keys and values of L layers for up to `capacity` positions, `length` of them filled."""

    def __init__(self, L: int, H: int, D: int, capacity: int, dtype: type[np.generic]) -> None:
        """Raises MachineError when there is no memory for it. dtype is float32, or uint16 holding float16."""
        self.H, self.D = H, D
        self.length = 0
        S, P = -(-capacity // 16) * 16, -(-D // 16) * 16
        self.capacity = capacity
        self.keys = alloc((L, H, S // 16, P, 16), dtype, "the KV cache")
        self.values = alloc((L, H, S, P), dtype, "the KV cache")

    def plain(self, layer: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Keys and values of the filled positions as (length, H, D) float32."""
        dtype = np.float16 if self.keys.dtype == np.uint16 else np.float32
        k = self.keys[layer].view(dtype).transpose(1, 3, 0, 2).reshape(-1, self.H, self.keys.shape[3])
        v = self.values[layer].view(dtype).transpose(1, 0, 2)
        return k[: self.length, :, : self.D].astype(np.float32), v[: self.length, :, : self.D].astype(np.float32)


def dtype_beside(weight_formats: Mapping[str, str]) -> type[np.generic]:
    """float16 (as uint16) beside quantized weights; float32 beside f32 and f16 ones, which are kept for exactness."""
    exact = all(formats.load(name).EXACT for name in weight_formats.values())
    return np.float32 if exact else np.uint16


def bytes_for(L: int, H: int, D: int, capacity: int, dtype: type[np.generic]) -> int:
    """Memory a full cache takes."""
    return 2 * L * H * (-(-capacity // 16) * 16) * (-(-D // 16) * 16) * np.dtype(dtype).itemsize


@dataclass(frozen=True)
class Segment:
    """One sequence's share of the flat token axis: tokens begin..end go behind what its cache holds.

    visible (end - begin,) int64: how many of the cache's positions, these tokens included, each token attends to.
    """

    begin: int
    end: int
    visible: NDArray[np.int64]
    cache: KVCache
