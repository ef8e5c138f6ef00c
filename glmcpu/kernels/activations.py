"""The elementwise parts of a block: GELU, and the residual of ChatGLM-6B."""

import numpy as np
from numpy.typing import NDArray

from glmcpu.simd.kernel import kernel
from glmcpu.simd.operation import floats, number, operation
from glmcpu.simd.program import Program
from glmcpu.simd.vector import add, div, exp, fma, load_part, mul, splat, store_part

_GRAIN = 1 << 13  # numbers worth a chunk


def gelu(program: Program, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """GELU in its tanh form, 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), in place; returns x.

    Computed as x / (1 + exp(-2 u)), which is the same function with one exponential.
    """
    program.add(_gelu, x.size, _GRAIN, x)
    return x


def scale_add(program: Program, h: NDArray[np.float32], alpha: float, y: NDArray[np.float32]) -> NDArray[np.float32]:
    """alpha * h + y, all (T, C), written over y; returns y."""
    program.add(_scale_add, h.size, _GRAIN, y, h, alpha)
    return y


@operation
def _gelu(a, worker, begin, end):
    _gelu_range(floats(a, 0), begin, end)


@operation
def _scale_add(a, worker, begin, end):
    _scale_add_range(floats(a, 0), floats(a, 1), number(a, 2), begin, end)


@kernel()
def _gelu_range(x, begin, end):
    cubic = splat(np.float32(-2 * 0.7978845608028654 * 0.044715))
    linear, one = splat(np.float32(-2 * 0.7978845608028654)), splat(np.float32(1))
    for i in range(begin, end, 16):
        v = load_part(x, i, end - i)
        u = mul(v, fma(mul(v, v), cubic, linear))
        store_part(x, i, div(v, add(one, exp(u))), end - i)


@kernel()
def _scale_add_range(y, h, alpha, begin, end):
    factor = splat(alpha)
    for i in range(begin, end, 16):
        n = end - i
        store_part(y, i, fma(load_part(h, i, n), factor, load_part(y, i, n)), n)
