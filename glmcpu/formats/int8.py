"""int8: the official 8-bit scheme, one scale for each output.

    block b:  | inputs 0..3: 16 outputs x 4 i8 | inputs 4..7 | ...  then filled up to 32 inputs with 0
    scales:   one f32 for each output (the official half, kept in full when a checkpoint brings f32)

A weight is code * scale, scale = half(max|row| / 127), code = round(half(w / scale)): bit for bit what the official
`quantize` computes from half weights (THUDM/chatglm-6b, quantization.py). A row of zeros has scale 0 and codes 0.
"""

from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from glmcpu.formats import ROWS
from glmcpu.formats._blocks import GROUP, blocks, groups, pad, place_bytes
from glmcpu.formats._official import quantize_row, row_scales
from glmcpu.formats._tiles import grain, tiled
from glmcpu.kernels.quantize_rows import quantize_rows
from glmcpu.simd.kernel import kernel
from glmcpu.simd.operation import floats, int32s, operation, signed_bytes
from glmcpu.simd.program import Program
from glmcpu.simd.tile import OFFSET, steps, tile_dot_bytes, tile_offsets, tile_scaled, tile_store, tokens
from glmcpu.simd.vector import load, load_bytes, load_part, prefetch, splat

BITS_PER_WEIGHT = 8.0
EXACT = False


def layout(O: int, I: int) -> dict[str, tuple[tuple[int, ...], type[np.generic]]]:
    """codes (blocks, I/4, 16, 4) i8, scales (blocks, 1, 16) f32."""
    return {
        "codes": ((blocks(O), groups(I) * GROUP // 4, ROWS, 4), np.int8),
        "scales": ((blocks(O), 1, ROWS), np.float32),
    }


def pack(weight: NDArray[np.float32], scale: NDArray[np.float32] | None = None) -> dict[str, NDArray[Any]]:
    """Quantizes weight (o, I); with `scale` the codes a checkpoint was made of come back exactly."""
    padded, scales = pad(weight, ROWS, GROUP), row_scales(weight, scale, 127)
    shapes = layout(*weight.shape)
    codes = np.empty(*shapes["codes"])
    _pack_parallel(codes, scales, padded, scale is None)
    return {"codes": codes, "scales": scales.reshape(shapes["scales"][0])}


def decode(xp: Any, lanes: Any) -> Any:
    """Rows of codes (n, I/4, 4) and scales (n, 1)."""
    codes = lanes["codes"]
    return codes.reshape(len(codes), -1) * lanes["scales"]


def matmul(
    program: Program, out: NDArray[np.float32], x: NDArray[np.float32], arrays: Any, bias: NDArray[np.float32]
) -> None:
    """out (T, O) = x (T, I) @ weight.T + bias, x quantized to int8 by groups of 32."""
    quantized, G, O = quantize_rows(program, x, -OFFSET), groups(x.shape[1]), out.shape[1]
    arguments = (out, arrays["codes"], arrays["scales"], *quantized, bias, len(x), G, O)
    program.add(_matmul, blocks(O), grain(G * GROUP * ROWS), *arguments)


@kernel(parallel=True)
def _pack_parallel(codes, scales, weight, half):
    for b in prange(codes.shape[0]):
        row = np.empty(weight.shape[1], np.int8)
        for lane in range(16):
            quantize_row(row, weight[b * 16 + lane], scales[b * 16 + lane], half)
            place_bytes(codes[b], row, lane)


@kernel()
def _block(zero, t, b, ahead, out, codes, scales, x_codes, x_scales, x_offsets, bias, G, O):
    """out[t:t+n, block b], n = the size of the tile `zero`."""
    acc, one, at = zero, splat(np.float32(1)), b * G * 512
    for g in range(G):
        group = t * G + g * tokens(zero)
        ints = tile_offsets(zero, x_offsets, group, 1)
        for j in range(steps(8)):
            prefetch(codes, at + 64 * j + ahead)
            ints = tile_dot_bytes(ints, load_bytes(codes, at + 64 * j), x_codes, group * 32 + 4 * j, 32)
        at += 512
        acc = tile_scaled(acc, ints, one, x_scales, group, 1)
    n = min(O - b * 16, 16)
    tile_store(out, t * O + b * 16, O, acc, load(scales, b * 16), load_part(bias, b * 16, n), n)


_matmul_range = tiled(_block)


@operation
def _matmul(a, worker, begin, end):
    weight, x = (signed_bytes(a, 1), floats(a, 2)), (signed_bytes(a, 3), floats(a, 4), int32s(a, 5))
    _matmul_range(a[7], begin, end, floats(a, 0), *weight, *x, floats(a, 6), a[8], a[9])
