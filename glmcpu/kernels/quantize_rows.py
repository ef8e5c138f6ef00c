"""Activations to int8: the byte side of every quantized matrix product.

    tile of n tokens:  | inputs 0..31: n times 32 codes i8 | inputs 32..63: n times 32 codes | ...

with one f32 scale and one i32 offset for each 32 codes, in the same order. A value is code * scale, codes -127..127.
The offset, a factor times the sum of the 32 codes, lets a weight format store unsigned codes: where a weight is its
code - 8, -8 times the sum belongs to every dot product. What a tile (tiles.py) needs for a step lies side by side: a
product reads it at fixed distances from one address.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from glmcpu.kernels.tiles import tile_of
from glmcpu.simd.kernel import kernel
from glmcpu.simd.operation import floats, int32s, operation, signed_bytes
from glmcpu.simd.program import Program
from glmcpu.simd.vector import absolute, load, load_part, maximum, mul, reduce_max, splat, store_codes

GROUP = 32
_GRAIN = 128  # groups worth a chunk


class Quantized(NamedTuple):
    """codes (T*G, 32) i8, scales (T*G,) f32 = max|group| / 127, offsets (T*G,) i32 = factor * sum(codes)."""

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    offsets: NDArray[np.int32]


def quantize_rows(program: Program, x: NDArray[np.float32], factor: int) -> Quantized:
    """Quantizes each row of x (T, I) by groups of 32 inputs, the last group filled up with zeros.

    factor: the value of a weight stored as 0: -8 where nibbles 0..15 stand for -8..7. A group with NaN or infinity has
    such a scale, so the product shows it.
    """
    T, I = x.shape
    G = -(-I // GROUP)
    out = Quantized(
        program.empty(T * G, GROUP, dtype=np.int8), program.empty(T * G), program.empty(T * G, dtype=np.int32)
    )
    program.add(_quantize_rows, T * G, _GRAIN, *out, x, T, I, G, factor)
    return out


@operation
def _quantize_rows(a, worker, begin, end):
    arrays = signed_bytes(a, 0), floats(a, 1), int32s(a, 2), floats(a, 3)
    _quantize_rows_range(*arrays, a[4], a[5], a[6], np.int32(a[7]), begin, end)


@kernel()
def _quantize_rows_range(codes, scales, offsets, x, T, I, G, factor, begin, end):
    """Groups begin..end of the T * G there are, token by token."""
    t, g = begin // G, begin % G
    first, n = tile_of(t, T)
    for _ in range(begin, end):
        if g == G:
            t, g = t + 1, 0
            first, n = tile_of(t, T)
        place = first * G + g * n + t - first
        at, left = t * I + g * 32, I - g * 32
        if left >= 32:
            a, b = load(x, at), load(x, at + 16)
        else:
            a, b = load_part(x, at, min(left, 16)), load_part(x, at + 16, max(left - 16, 0))
        largest = reduce_max(maximum(absolute(a), absolute(b)))
        scales[place] = largest * np.float32(1 / 127)
        inverse = splat(np.float32(127) / largest if largest > np.float32(1e-30) else np.float32(0))
        total = store_codes(codes, place * 32, mul(a, inverse))
        total += store_codes(codes, place * 32 + 16, mul(b, inverse))
        offsets[place] = factor * total
        g += 1
