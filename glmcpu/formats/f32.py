"""f32: weights as they are, 32 bits each. For exactness, not for speed.

    block b:  | input 0: 16 outputs f32 | input 1: 16 outputs f32 | ...

The loop is shared with f16, whose arrays differ only in the width of a number. Sums run over the inputs in order, one
fused multiply-add at a time, so a result depends neither on the number of threads nor on the other tokens.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from glmcpu.formats import ROWS
from glmcpu.formats._blocks import blocks, pad
from glmcpu.formats._tiles import grain, tiled
from glmcpu.simd.kernel import kernel
from glmcpu.simd.operation import Operation, floats, operation
from glmcpu.simd.program import Program
from glmcpu.simd.tile import tile_fma, tile_store
from glmcpu.simd.vector import load, load_part, prefetch, splat

BITS_PER_WEIGHT = 32.0
EXACT = True


def layout(O: int, I: int) -> dict[str, tuple[tuple[int, ...], type[np.generic]]]:
    """values (blocks, I, 16) f32."""
    return {"values": ((blocks(O), I, ROWS), np.float32)}


def pack(weight: NDArray[np.float32], scale: NDArray[np.float32] | None = None) -> dict[str, NDArray[Any]]:
    """Puts weight (o, I) into blocks."""
    padded = pad(weight, ROWS, 1)
    return {"values": np.ascontiguousarray(padded.reshape(-1, ROWS, weight.shape[1]).transpose(0, 2, 1))}


def decode(xp: Any, lanes: Any) -> Any:
    """Rows of values (n, I)."""
    return lanes["values"]


def matmul(
    program: Program, out: NDArray[np.float32], x: NDArray[np.float32], arrays: Any, bias: NDArray[np.float32]
) -> None:
    """out (T, O) = x (T, I) @ weight.T + bias."""
    add_matmul(program, _matmul_f32, out, x, arrays["values"], bias)


def add_matmul(
    program: Program,
    operation: Operation,
    out: NDArray[np.float32],
    x: NDArray[np.float32],
    values: NDArray[Any],
    bias: NDArray[np.float32],
) -> None:
    """The same for values (blocks, I, 16) that `operation` can read."""
    T, I = x.shape
    O = out.shape[1]
    program.add(operation, blocks(O), grain(I * ROWS * values.itemsize), out, x, values, bias, T, I, O)


@kernel()
def _block(zero, t, b, ahead, out, x, values, bias, I, O):
    """out[t:t+n, block b], n = the size of the tile `zero`."""
    acc, at = zero, b * I * 16
    for i in range(I):
        prefetch(values, at + 16 * i + ahead // 4)
        acc = tile_fma(acc, load(values, at + 16 * i), x, t * I + i, I)
    n = min(O - b * 16, 16)
    tile_store(out, t * O + b * 16, O, acc, splat(np.float32(1)), load_part(bias, b * 16, n), n)


matmul_range = tiled(_block)


@operation
def _matmul_f32(a, worker, begin, end):
    matmul_range(a[4], begin, end, floats(a, 0), floats(a, 1), floats(a, 2), floats(a, 3), a[5], a[6])
