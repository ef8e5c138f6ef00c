"""Layer norm: (x - mean) / sqrt(variance + epsilon) * scale + shift, one token at a time."""

import numpy as np
from numpy.typing import NDArray

from glmcpu.simd.kernel import kernel
from glmcpu.simd.operation import floats, number, operation
from glmcpu.simd.program import Program
from glmcpu.simd.vector import add, first, fma, load_part, mul, reduce_add, splat, store_part, sub


def layer_norm(
    program: Program, x: NDArray[np.float32], scale: NDArray[np.float32], shift: NDArray[np.float32], epsilon: float
) -> NDArray[np.float32]:
    """x (T, C) normed over C with biased variance (Ba et al. 2016), times scale (C,) plus shift (C,)."""
    T, C = x.shape
    out = program.empty(T, C)
    program.add(_layer_norm, T, 4, out, x, scale, shift, epsilon, C)
    return out


@operation
def _layer_norm(a, worker, begin, end):
    _layer_norm_range(floats(a, 0), floats(a, 1), floats(a, 2), floats(a, 3), number(a, 4), a[5], begin, end)


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
