"""Activations to int8: the byte side of every quantized matrix product.

    token t:  | 32 codes i8 | 32 codes | ...     one f32 scale and one i32 sum of the codes for each 32 inputs

A value is code * scale with codes -127..127. The sums let a weight format store unsigned codes: what its offset adds to
a dot product is offset * sum, known once for all outputs.
"""

import numpy as np
from numba import prange
from numpy.typing import NDArray

from glmcpu.kernels.threads import threads
from glmcpu.simd.kernel import kernel
from glmcpu.simd.vector import absolute, load, load_part, maximum, mul, reduce_max, splat, store_codes

GROUP = 32


def quantize_rows(x: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.int32]]:
    """Quantizes each row of x (T, I) by groups of 32 inputs, the last group filled up with zeros.

    Returns codes (T, G*32) i8, scales (T, G) f32 = max|group| / 127, sums (T, G) i32. A group with NaN or infinity has
    such a scale, so the product shows it.
    """
    T, I = x.shape
    G = -(-I // GROUP)
    codes, scales, sums = np.empty((T, G * GROUP), np.int8), np.empty((T, G), np.float32), np.empty((T, G), np.int32)
    arrays = (codes.reshape(-1), scales.reshape(-1), sums.reshape(-1), x.reshape(-1), I, G)
    if T * I < 1 << 15:
        _quantize_rows_range(*arrays, 0, T)
    else:
        _quantize_rows_parallel(*arrays, T, min(threads(), T))
    return codes, scales, sums


@kernel()
def _quantize_rows_range(codes, scales, sums, x, I, G, begin, end):
    for t in range(begin, end):
        for g in range(G):
            at, left = t * I + g * 32, I - g * 32
            if left >= 32:
                a, b = load(x, at), load(x, at + 16)
            else:
                a, b = load_part(x, at, min(left, 16)), load_part(x, at + 16, max(left - 16, 0))
            largest = reduce_max(maximum(absolute(a), absolute(b)))
            scales[t * G + g] = largest * np.float32(1 / 127)
            inverse = splat(np.float32(127) / largest if largest > np.float32(1e-30) else np.float32(0))
            into = (t * G + g) * 32
            sum_a = store_codes(codes, into, mul(a, inverse))
            sums[t * G + g] = sum_a + store_codes(codes, into + 16, mul(b, inverse))


@kernel(parallel=True)
def _quantize_rows_parallel(codes, scales, sums, x, I, G, T, workers):
    for w in prange(workers):
        _quantize_rows_range(codes, scales, sums, x, I, G, T * w // workers, T * (w + 1) // workers)
