"""Activations to int8: the byte side of every quantized matrix product.

    token t:  | 32 codes i8 | 32 codes | ...     one f32 scale and one i32 sum of the codes for each 32 inputs

A value is code * scale with codes -127..127. The sums let a weight format store unsigned codes: what its offset adds to
a dot product is offset * sum, known once for all outputs.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from glmcpu.simd.kernel import kernel
from glmcpu.simd.operation import floats, int32s, operation, signed_bytes
from glmcpu.simd.program import Program
from glmcpu.simd.vector import absolute, load, load_part, maximum, mul, reduce_max, splat, store_codes

GROUP = 32
_GRAIN = 128  # groups worth a chunk


class Quantized(NamedTuple):
    """codes (T, G*32) i8, scales (T, G) f32 = max|group| / 127, sums (T, G) i32."""

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    sums: NDArray[np.int32]


def quantize_rows(program: Program, x: NDArray[np.float32]) -> Quantized:
    """Quantizes each row of x (T, I) by groups of 32 inputs, the last group filled up with zeros.

    A group with NaN or infinity has such a scale, so the product shows it.
    """
    T, I = x.shape
    G = -(-I // GROUP)
    out = Quantized(
        program.empty(T, G * GROUP, dtype=np.int8), program.empty(T, G), program.empty(T, G, dtype=np.int32)
    )
    program.add(_quantize_rows, T * G, _GRAIN, *out, x, I, G)
    return out


@operation
def _quantize_rows(a, worker, begin, end):
    _quantize_rows_range(signed_bytes(a, 0), floats(a, 1), int32s(a, 2), floats(a, 3), a[4], a[5], begin, end)


@kernel()
def _quantize_rows_range(codes, scales, sums, x, I, G, begin, end):
    """Groups begin..end of the T * G there are."""
    for group in range(begin, end):
        t, g = group // G, group % G
        at, left = t * I + g * 32, I - g * 32
        if left >= 32:
            a, b = load(x, at), load(x, at + 16)
        else:
            a, b = load_part(x, at, min(left, 16)), load_part(x, at + 16, max(left - 16, 0))
        largest = reduce_max(maximum(absolute(a), absolute(b)))
        scales[group] = largest * np.float32(1 / 127)
        inverse = splat(np.float32(127) / largest if largest > np.float32(1e-30) else np.float32(0))
        sum_a = store_codes(codes, group * 32, mul(a, inverse))
        sums[group] = sum_a + store_codes(codes, group * 32 + 16, mul(b, inverse))
