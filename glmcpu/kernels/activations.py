"""The elementwise parts of a block: GELU, and the residual of ChatGLM-6B."""

import numpy as np
from numba import prange
from numpy.typing import NDArray

from glmcpu.kernels.threads import threads
from glmcpu.simd.kernel import kernel
from glmcpu.simd.vector import add, div, exp, fma, load_part, mul, splat, store_part

_SHARED = 1 << 16  # fewer numbers than this are done sooner by one thread than shared out


def gelu(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """GELU in its tanh form, 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), in place; returns x.

    Computed as x / (1 + exp(-2 u)), which is the same function with one exponential.
    """
    if x.size < _SHARED:
        _gelu_range(x.reshape(-1), 0, x.size)
    else:
        _gelu_parallel(x.reshape(-1), x.size, threads())
    return x


def scale_add(h: NDArray[np.float32], alpha: float, y: NDArray[np.float32]) -> NDArray[np.float32]:
    """alpha * h + y, all (T, C), written over y; returns y."""
    arguments = (y.reshape(-1), h.reshape(-1), np.float32(alpha))
    if h.size < _SHARED:
        _scale_add_range(*arguments, 0, h.size)
    else:
        _scale_add_parallel(*arguments, h.size, threads())
    return y


@kernel()
def _gelu_range(x, begin, end):
    cubic = splat(np.float32(-2 * 0.7978845608028654 * 0.044715))
    linear, one = splat(np.float32(-2 * 0.7978845608028654)), splat(np.float32(1))
    for i in range(begin, end, 16):
        v = load_part(x, i, end - i)
        u = mul(v, fma(mul(v, v), cubic, linear))
        store_part(x, i, div(v, add(one, exp(u))), end - i)


@kernel(parallel=True)
def _gelu_parallel(x, size, workers):
    for w in prange(workers):
        _gelu_range(x, size * w // workers, size * (w + 1) // workers)


@kernel()
def _scale_add_range(y, h, alpha, begin, end):
    factor = splat(alpha)
    for i in range(begin, end, 16):
        n = end - i
        store_part(y, i, fma(load_part(h, i, n), factor, load_part(y, i, n)), n)


@kernel(parallel=True)
def _scale_add_parallel(y, h, alpha, size, workers):
    for w in prange(workers):
        _scale_add_range(y, h, alpha, size * w // workers, size * (w + 1) // workers)
