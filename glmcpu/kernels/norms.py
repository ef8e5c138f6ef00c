"""Layer norm: (x - mean) / sqrt(variance + epsilon) * scale + shift, one token at a time."""

import numpy as np
from numba import prange
from numpy.typing import NDArray

from glmcpu.kernels.threads import threads
from glmcpu.simd.kernel import kernel
from glmcpu.simd.vector import add, first, fma, load_part, mul, reduce_add, splat, store_part, sub


def layer_norm(
    x: NDArray[np.float32], scale: NDArray[np.float32], shift: NDArray[np.float32], epsilon: float
) -> NDArray[np.float32]:
    """x (T, C) normed over C with biased variance (Ba et al. 2016), times scale (C,) plus shift (C,)."""
    T, C = x.shape
    out = np.empty_like(x)
    arguments = (out.reshape(-1), x.reshape(-1), scale, shift, np.float32(epsilon), C)
    if T < 4:  # too little to share
        _layer_norm_range(*arguments, 0, T)
    else:
        _layer_norm_parallel(*arguments, T, min(threads(), T))
    return out


@kernel()
def _layer_norm_range(out, x, scale, shift, epsilon, C, begin, end):
    zero = np.float32(0)
    for t in range(begin, end):
        total = splat(zero)
        for c in range(0, C, 16):
            total = add(total, load_part(x, t * C + c, C - c))
        mean = splat(reduce_add(total) / np.float32(C))
        squares = splat(zero)
        for c in range(0, C, 16):
            d = first(C - c, sub(load_part(x, t * C + c, C - c), mean), zero)
            squares = fma(d, d, squares)
        variance = reduce_add(squares) / np.float32(C)
        inverse = splat(np.float32(1) / np.sqrt(variance + epsilon))
        for c in range(0, C, 16):
            n = C - c
            normed = mul(sub(load_part(x, t * C + c, n), mean), inverse)
            store_part(out, t * C + c, fma(normed, load_part(scale, c, n), load_part(shift, c, n)), n)


@kernel(parallel=True)
def _layer_norm_parallel(out, x, scale, shift, epsilon, C, T, workers):
    for w in prange(workers):
        _layer_norm_range(out, x, scale, shift, epsilon, C, T * w // workers, T * (w + 1) // workers)
