"""What the converter asks of whole slabs of weights: halves as float32, and the largest magnitude."""

import numpy as np
from numba import prange
from numpy.typing import NDArray

from glmcpu.kernels.threads import threads
from glmcpu.simd.kernel import kernel
from glmcpu.simd.vector import absolute, float_of_half, load, load_part, maximum, reduce_max, splat, store

_STEP = 1 << 14  # elements of one piece of work, a multiple of 16


def widen(out: NDArray[np.float32], halves: NDArray[np.uint16]) -> None:
    """Writes the floats that the float16 bits `halves` (n,) stand for to `out` (n,); both C-contiguous."""
    _widen_parallel(out, halves, threads())


def largest_magnitude(x: NDArray[np.float32]) -> float:
    """max |x| over all of a C-contiguous array; NaN if one is there, 0 if nothing is."""
    flat = x.reshape(-1)
    if not flat.size:
        return 0.0
    found = np.empty(-(-flat.size // _STEP), np.float32)
    _largest_parallel(found, flat, threads())
    return float(found.max())


@kernel()
def _widen_range(out, halves, begin, end):
    whole = begin + (end - begin) // 16 * 16
    for i in range(begin, whole, 16):
        store(out, i, load(halves, i))
    for i in range(whole, end):
        out[i] = float_of_half(halves[i])


@kernel(parallel=True)
def _widen_parallel(out, halves, workers):
    n = out.size
    for w in prange(workers):
        _widen_range(out, halves, n * w // workers, n * (w + 1) // workers)


@kernel()
def _largest_range(x, begin, end):
    largest = splat(np.float32(0))
    for i in range(begin, end, 16):
        largest = maximum(largest, absolute(load_part(x, i, end - i)))
    return reduce_max(largest)


@kernel(parallel=True)
def _largest_parallel(found, x, workers):
    for w in prange(workers):
        for piece in range(found.size * w // workers, found.size * (w + 1) // workers):
            found[piece] = _largest_range(x, piece * _STEP, min(x.size, (piece + 1) * _STEP))
