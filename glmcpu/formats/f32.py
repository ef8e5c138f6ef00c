"""f32: weights as they are, 32 bits each. For exactness, not for speed.

    block b:  | input 0: 16 outputs f32 | input 1: 16 outputs f32 | ...

The loop is shared with f16, whose arrays differ only in the width of a number. Sums run over the inputs in order, one
fused multiply-add at a time, so a result depends neither on the number of threads nor on the other tokens.
"""

from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from glmcpu.formats._blocks import ROWS, blocks, lane_rows, pad
from glmcpu.kernels.threads import threads
from glmcpu.simd.kernel import kernel
from glmcpu.simd.tile import TILE, tile_fma, tile_store, zeros
from glmcpu.simd.vector import load, load_part, splat

BITS_PER_WEIGHT = 32.0
EXACT = True


def layout(O: int, I: int) -> dict[str, tuple[tuple[int, ...], type[np.generic]]]:
    """values (blocks, I, 16) f32."""
    return {"values": ((blocks(O), I, ROWS), np.float32)}


def pack(weight: NDArray[np.float32], scale: NDArray[np.float32] | None = None) -> dict[str, NDArray[Any]]:
    """Puts weight (o, I) into blocks."""
    padded = pad(weight, ROWS, 1)
    return {"values": np.ascontiguousarray(padded.reshape(-1, ROWS, weight.shape[1]).transpose(0, 2, 1))}


def rows(arrays: Any, ids: NDArray[np.intp], I: int) -> NDArray[np.float32]:
    """Rows `ids` as (n, I) float32."""
    return lane_rows(arrays["values"], ids).astype(np.float32)


def matmul(out: NDArray[np.float32], x: NDArray[np.float32], arrays: Any, bias: NDArray[np.float32]) -> None:
    """out (T, O) = x (T, I) @ weight.T + bias."""
    matmul_values(out, x, arrays["values"], bias)


def matmul_values(
    out: NDArray[np.float32], x: NDArray[np.float32], values: NDArray[Any], bias: NDArray[np.float32]
) -> None:
    """The same for values (blocks, I, 16) in f32, or in f16 seen as uint16."""
    T, I = x.shape
    _matmul_parallel(out.reshape(-1), x.reshape(-1), values.reshape(-1), bias, T, I, out.shape[1], threads())


@kernel()
def _matmul_block(out, x, values, bias, zero, t, b, I, O):
    """out[t:t+n, block b], n = the size of the tile `zero`."""
    acc, at = zero, b * I * 16
    for i in range(I):
        acc = tile_fma(acc, load(values, at + 16 * i), x, t * I + i, I)
    n = min(O - b * 16, 16)
    tile_store(out, t * O + b * 16, O, acc, splat(np.float32(1)), load_part(bias, b * 16, n), n)


@kernel()
def _matmul_range(out, x, values, bias, T, I, O, begin, end):
    """Blocks begin..end for all T tokens, on one thread."""
    for b in range(begin, end):
        whole = T // TILE * TILE
        for t in range(0, whole, TILE):
            _matmul_block(out, x, values, bias, zeros(TILE), t, b, I, O)
        for t in range(whole, T):
            _matmul_block(out, x, values, bias, zeros(1), t, b, I, O)


@kernel(parallel=True)
def _matmul_parallel(out, x, values, bias, T, I, O, workers):
    count = (O + 15) // 16
    for w in prange(workers):
        _matmul_range(out, x, values, bias, T, I, O, count * w // workers, count * (w + 1) // workers)
