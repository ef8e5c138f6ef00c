"""int4: the official 4-bit scheme, one scale for each output.

    block b:  | inputs 0..7: 16 outputs x 4 bytes | inputs 8..15 | ...  nibbles as in _blocks.py, filled up to 32 inputs
    scales:   one f32 for each output (the official half, kept in full when a checkpoint brings f32)

A weight is (nibble - 8) * scale, scale = half(max|row| / 7), as in int8. Codes -7..7 occur. One scale for thousands of
inputs is coarse: int4_g32 is the better four bits; this one is for the official checkpoints.
"""

from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from glmcpu.formats import ROWS
from glmcpu.formats._blocks import GROUP, blocks, groups, nibbles, pad, place_nibbles
from glmcpu.formats._official import quantize_row, row_scales
from glmcpu.formats._tiles import grain, tiled
from glmcpu.kernels.quantize_rows import quantize_rows
from glmcpu.simd.kernel import kernel
from glmcpu.simd.operation import floats, int32s, operation, signed_bytes, unsigned_bytes
from glmcpu.simd.program import Program
from glmcpu.simd.tile import (
    steps,
    tile_dot_nibbles,
    tile_offsets,
    tile_scaled,
    tile_store,
    tile_sums,
    tile_total,
    tokens,
)
from glmcpu.simd.vector import high_nibbles, load, load_bytes, load_part, low_nibbles, prefetch, splat

BITS_PER_WEIGHT = 4.0
EXACT = False


def layout(O: int, I: int) -> dict[str, tuple[tuple[int, ...], type[np.generic]]]:
    """codes (blocks, I/8, 16, 4) u8, scales (blocks, 1, 16) f32."""
    return {
        "codes": ((blocks(O), groups(I) * GROUP // 8, ROWS, 4), np.uint8),
        "scales": ((blocks(O), 1, ROWS), np.float32),
    }


def pack(weight: NDArray[np.float32], scale: NDArray[np.float32] | None = None) -> dict[str, NDArray[Any]]:
    """Quantizes weight (o, I); with `scale` the codes a checkpoint was made of come back exactly."""
    padded, scales = pad(weight, ROWS, GROUP), row_scales(weight, scale, 7)
    shapes = layout(*weight.shape)
    codes = np.empty(*shapes["codes"])
    _pack_parallel(codes, scales, padded, scale is None)
    return {"codes": codes, "scales": scales.reshape(shapes["scales"][0])}


def decode(xp: Any, lanes: Any) -> Any:
    """Rows of codes (n, I/8, 4) and scales (n, 1)."""
    return nibbles(xp, lanes["codes"]) * lanes["scales"]


def matmul(
    program: Program, out: NDArray[np.float32], x: NDArray[np.float32], arrays: Any, bias: NDArray[np.float32]
) -> None:
    """out (T, O) = x (T, I) @ weight.T + bias, x quantized to int8 by groups of 32."""
    quantized, G, O = quantize_rows(program, x, -8), groups(x.shape[1]), out.shape[1]
    arguments = (out, arrays["codes"], arrays["scales"], *quantized, bias, len(x), G, O)
    program.add(_matmul, blocks(O), grain(G * GROUP * ROWS // 2), *arguments)


@kernel(parallel=True)
def _pack_parallel(codes, scales, weight, half):
    for b in prange(codes.shape[0]):
        row = np.empty(weight.shape[1], np.int8)
        for lane in range(16):
            quantize_row(row, weight[b * 16 + lane], scales[b * 16 + lane], half)
            place_nibbles(codes[b], row, lane)


@kernel()
def _block(zero, t, b, ahead, out, codes, scales, x_codes, x_scales, x_offsets, bias, G, O):
    """out[t:t+n, block b], n = the size of the tile `zero`."""
    acc, one, at = zero, splat(np.float32(1)), b * G * 256
    for g in range(G):
        group = t * G + g * tokens(zero)
        offsets = tile_offsets(zero, x_offsets, group, 1)
        sums = tile_sums(offsets)
        for j in range(steps(4)):
            prefetch(codes, at + 64 * j + ahead)
            both, x_at = load_bytes(codes, at + 64 * j), group * 32 + 8 * j
            sums = tile_dot_nibbles(sums, low_nibbles(both), x_codes, x_at, 32)
            sums = tile_dot_nibbles(sums, high_nibbles(both), x_codes, x_at + 4, 32)
        at += 256
        acc = tile_scaled(acc, tile_total(sums, offsets), one, x_scales, group, 1)
    n = min(O - b * 16, 16)
    tile_store(out, t * O + b * 16, O, acc, load(scales, b * 16), load_part(bias, b * 16, n), n)


_matmul_range = tiled(_block)


@operation
def _matmul(a, worker, begin, end):
    weight, x = (unsigned_bytes(a, 1), floats(a, 2)), (signed_bytes(a, 3), floats(a, 4), int32s(a, 5))
    _matmul_range(a[7], begin, end, floats(a, 0), *weight, *x, floats(a, 6), a[8], a[9])
