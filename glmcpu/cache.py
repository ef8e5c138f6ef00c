"""The KV cache of one sequence: what attention has seen so far.

Allocated once for the whole context, written in order, never moved. Memory is only taken as positions are filled: the
system hands out zeroed pages when they are first written, of 2 MB where it can, so what is filled together lies
together. Layout of a layer, B blocks of 128 positions, P = D filled up to a multiple of 16; see kernels/append.py:

    keys    (B, H, 8, P, 16)     values  (B, H, 128, P)

Numbers are float32, float16 (uint16), or int8 with a float32 scale for each head and position: half the memory, for an
error of half a step of 1/127 of the largest of the head's channels.

A P-Tuning prefix is what the cache begins with: `prefix` positions that were never tokens, seen by all of them.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glmcpu import formats
from glmcpu.kernels import BLOCK
from glmcpu.memory import alloc

_SERIALS = itertools.count()


class KVCache:
    """Keys and values of L layers for a prefix and up to `capacity` tokens behind it, `length` of them read."""

    def __init__(self, L: int, H: int, D: int, capacity: int, kind: str) -> None:
        """Raises MachineError when there is no memory for it. kind is one of KINDS."""
        dtype = KINDS[kind]
        self.H, self.D, self.kind = H, D, kind
        self.serial = next(_SERIALS)  # unlike id(), never another cache's
        self.length = self.prefix = 0
        B, P = -(-capacity // BLOCK), -(-D // 16) * 16
        self.capacity = capacity
        self.keys = alloc((L, B, H, BLOCK // 16, P, 16), dtype, "the KV cache")
        self.values = alloc((L, B, H, BLOCK, P), dtype, "the KV cache")
        scales = (L, B, H, BLOCK if dtype is np.int8 else 0)
        self.key_scales, self.value_scales = (alloc(scales, np.float32, "the KV cache") for _ in range(2))

    def layer(self, n: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.float32], NDArray[np.float32]]:
        """Layer n as kernels/attention.py reads it."""
        return self.keys[n], self.values[n], self.key_scales[n], self.value_scales[n]

    def plain(self, layer: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Keys and values of the filled positions, the prefix included, as (positions, H, D) float32."""
        keys, values, key_scales, value_scales = self.layer(layer)
        if keys.dtype == np.uint16:
            keys, values = keys.view(np.float16), values.view(np.float16)
        B, H, P = keys.shape[0], self.H, keys.shape[3]
        n = self.prefix + self.length
        k = keys.transpose(0, 2, 4, 1, 3).reshape(B * BLOCK, H, P)[:n, :, : self.D].astype(np.float32)
        v = values.transpose(0, 2, 1, 3).reshape(B * BLOCK, H, P)[:n, :, : self.D].astype(np.float32)
        if key_scales.size:
            for numbers, scales in ((k, key_scales), (v, value_scales)):
                numbers *= scales.transpose(0, 2, 1).reshape(B * BLOCK, H, 1)[:n]
        return k, v

    def write(self, layer: int, keys: NDArray[np.float32], values: NDArray[np.float32]) -> None:
        """Writes keys and values (n, H, D) to a layer's first n positions, as numbers of its kind."""
        block, place = np.divmod(np.arange(len(keys)), BLOCK)
        kept_keys, kept_values, key_scales, value_scales = self.layer(layer)
        k: NDArray[Any] = keys
        v: NDArray[Any] = values
        if kept_keys.dtype == np.uint16:
            kept_keys, kept_values = kept_keys.view(np.float16), kept_values.view(np.float16)
        if kept_keys.dtype == np.int8:
            k, key_scales[block, :, place] = _to_codes(keys)
            v, value_scales[block, :, place] = _to_codes(values)
        kept_keys[block, :, place // 16, : self.D, place % 16] = k
        kept_values[block, :, place, : self.D] = v

    def begin_with(self, other: "KVCache") -> None:
        """Takes all of another cache of the same kind as the prefix of this one, which is empty and has room for it."""
        for mine, theirs in (
            (self.keys, other.keys),
            (self.values, other.values),
            (self.key_scales, other.key_scales),
            (self.value_scales, other.value_scales),
        ):
            mine[:, : theirs.shape[1]] = theirs
        self.prefix = other.capacity
        self.capacity -= other.capacity

    def copy_from(self, other: "KVCache") -> None:
        """Becomes the same as another cache of the same kind and size."""
        for name in ("keys", "values", "key_scales", "value_scales"):
            getattr(self, name)[...] = getattr(other, name)
        self.length, self.prefix, self.capacity = other.length, other.prefix, other.capacity

    @property
    def position_bytes(self) -> float:
        """What one position takes."""
        return float(self.nbytes / (self.keys.shape[1] * BLOCK))

    @property
    def nbytes(self) -> int:
        """Memory of a full cache."""
        return self.keys.nbytes + self.values.nbytes + self.key_scales.nbytes + self.value_scales.nbytes


KINDS: dict[str, type[np.generic]] = {"f32": np.float32, "f16": np.uint16, "int8": np.int8}
"""How numbers are kept, by name."""


def _to_codes(numbers: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """int8 codes of (n, H, D) and their scales (n, H), as kernels/append.py makes them."""
    scales = np.abs(numbers).max(axis=2) * np.float32(1 / 127)
    inverse = np.where(scales > 1e-30, 1 / np.where(scales > 1e-30, scales, 1), 0).astype(np.float32)
    return np.rint(numbers * inverse[:, :, None]).astype(np.int8), scales


def kind_beside(weight_formats: Mapping[str, str]) -> str:
    """f16 beside quantized weights; f32 beside f32 and f16 ones, which are kept for exactness."""
    return "f32" if all(formats.load(name).EXACT for name in weight_formats.values()) else "f16"


def bytes_for(L: int, H: int, D: int, capacity: int, kind: str) -> int:
    """Memory a full cache takes."""
    numbers = -(-D // 16) * 16 * np.dtype(KINDS[kind]).itemsize
    return 2 * L * H * (-(-capacity // BLOCK) * BLOCK) * (numbers + (4 if kind == "int8" else 0))


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
