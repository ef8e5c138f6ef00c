"""int4_g32: four bits a weight and one half-precision scale for every 32 inputs of an output. The default.

    block b:  | inputs 0..7: 16 outputs x 4 bytes | inputs 8..15 | ...  nibbles as in _blocks.py, filled up to 32 inputs
    scales:   | group 0: 16 outputs f16 | group 1: 16 outputs f16 | ...

A weight is (nibble - 8) * scale; 4.5 bits a weight. A scale may be negative, so that the largest weight of a group, of
either sign, can take code -8. It is not simply max / 8: for a dozen divisors the codes are tried, the best scale for
those codes is their least-squares one, and the divisor with the smallest squared error wins. Left out: a zero point per
group (half a bit more) and calibration by activations.
"""

from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from glmcpu.formats._blocks import GROUP, ROWS, blocks, groups, lane_rows, nibble_rows, pad, place_nibbles
from glmcpu.formats._tiles import grain, tiled
from glmcpu.kernels.quantize_rows import quantize_rows
from glmcpu.simd.kernel import kernel
from glmcpu.simd.operation import floats, halves, int32s, operation, signed_bytes, unsigned_bytes
from glmcpu.simd.program import Program
from glmcpu.simd.tile import steps, tile_dot_nibbles, tile_offsets, tile_scaled, tile_store, tile_sums, tile_total
from glmcpu.simd.vector import (
    float_of_half,
    fma,
    half_bits,
    high_nibbles,
    load,
    load_bytes,
    load_part,
    low_nibbles,
    mul,
    prefetch,
    reduce_add,
    round_within,
    splat,
    store_codes,
)

BITS_PER_WEIGHT = 4.5
EXACT = False


def layout(O: int, I: int) -> dict[str, tuple[tuple[int, ...], type[np.generic]]]:
    """codes (blocks, I/8, 16, 4) u8, scales (blocks, I/32, 16) f16."""
    return {
        "codes": ((blocks(O), groups(I) * GROUP // 8, ROWS, 4), np.uint8),
        "scales": ((blocks(O), groups(I), ROWS), np.float16),
    }


def pack(weight: NDArray[np.float32], scale: NDArray[np.float32] | None = None) -> dict[str, NDArray[Any]]:
    """Quantizes weight (o, I); a row `scale` an official int4 checkpoint was made with is tried first: it is exact."""
    padded, shapes = pad(weight, ROWS, GROUP), layout(*weight.shape)
    given = np.zeros(len(padded), np.float32)
    if scale is not None:
        given[: len(scale)] = scale
    codes, scales = np.empty(*shapes["codes"]), np.empty(*shapes["scales"])
    _pack_parallel(codes, scales.view(np.uint16), padded, given)
    return {"codes": codes, "scales": scales}


def rows(arrays: Any, ids: NDArray[np.intp], I: int) -> NDArray[np.float32]:
    """Rows `ids` as (n, I) float32."""
    scales = lane_rows(arrays["scales"], ids).astype(np.float32)
    return nibble_rows(arrays["codes"], ids, I) * np.repeat(scales, GROUP, axis=1)[:, :I]


def matmul(
    program: Program, out: NDArray[np.float32], x: NDArray[np.float32], arrays: Any, bias: NDArray[np.float32]
) -> None:
    """out (T, O) = x (T, I) @ weight.T + bias, x quantized to int8 by groups of 32."""
    quantized, G, O = quantize_rows(program, x), groups(x.shape[1]), out.shape[1]
    arguments = (out, arrays["codes"], arrays["scales"], *quantized, bias, len(x), G, O)
    program.add(_matmul, blocks(O), grain(G * GROUP * ROWS // 2), *arguments)


# The group's largest weight divided by each of these is tried as the scale.
_DIVISORS = np.array([-8, -8.5, -9, -7.5, -7, -6.5, 7, 7.5, 8, 6.5, 6, -6], np.float32)


@kernel()
def _try_scale(weight, at, scale):
    """(sum w*q, sum q*q) for the codes q that `scale` gives the 32 weights from `at` on."""
    inverse = splat(np.float32(1) / scale)
    a, b = load(weight, at), load(weight, at + 16)
    p = round_within(mul(a, inverse), np.float32(-8), np.float32(7))
    q = round_within(mul(b, inverse), np.float32(-8), np.float32(7))
    return reduce_add(fma(p, a, mul(q, b))), reduce_add(fma(p, p, mul(q, q)))


@kernel()
def _best_scale(weight, at, given):
    """The scale (f32) with the smallest squared error for 32 weights; 0 when all are 0."""
    largest = np.float32(0)
    for i in range(at, at + 32):
        if abs(weight[i]) > abs(largest):
            largest = weight[i]
    if abs(largest) < np.float32(1e-7):
        return np.float32(0)
    # The error of codes q at their least-squares scale is sum w*w - (sum w*q)**2 / sum q*q.
    best, gain = np.float32(0), np.float32(-1)
    if given != 0:
        wq, qq = _try_scale(weight, at, given)
        best, gain = given, wq * wq / qq
    for divisor in _DIVISORS:
        wq, qq = _try_scale(weight, at, largest / divisor)
        if wq * wq > gain * qq * np.float32(1.000001):
            best, gain = wq / qq, wq * wq / qq
    return best


@kernel(parallel=True)
def _pack_parallel(codes, scales, weight, given):
    for b in prange(codes.shape[0]):
        row = np.empty(weight.shape[1], np.int8)
        for lane in range(16):
            values = weight[b * 16 + lane]
            for g in range(values.size // 32):
                at, place = g * 32, scales[b, g]
                place[lane] = half_bits(_best_scale(values, at, given[b * 16 + lane]))
                scale = float_of_half(place[lane])
                inverse = splat(np.float32(1) / scale if scale != 0 else np.float32(0))
                for i in range(at, at + 32, 16):
                    codes_of = round_within(mul(load(values, i), inverse), np.float32(-8), np.float32(7))
                    store_codes(row, i, codes_of)
            place_nibbles(codes[b], row, lane)


@kernel()
def _block(zero, t, b, ahead, out, codes, scales, x_codes, x_scales, x_sums, bias, G, O):
    """out[t:t+n, block b], n = the size of the tile `zero`."""
    acc, at = zero, b * G * 256
    for g in range(G):
        group = t * G + g
        offsets = tile_offsets(zero, np.int32(-8), x_sums, group, G)
        sums = tile_sums(offsets)
        for j in range(steps(4)):
            prefetch(codes, at + 64 * j + ahead)
            both, x_at = load_bytes(codes, at + 64 * j), group * 32 + 8 * j
            sums = tile_dot_nibbles(sums, low_nibbles(both), x_codes, x_at, G * 32)
            sums = tile_dot_nibbles(sums, high_nibbles(both), x_codes, x_at + 4, G * 32)
        at += 256
        acc = tile_scaled(acc, tile_total(sums, offsets), load(scales, (b * G + g) * 16), x_scales, group, G)
    n = min(O - b * 16, 16)
    tile_store(out, t * O + b * 16, O, acc, splat(np.float32(1)), load_part(bias, b * 16, n), n)


_matmul_range = tiled(_block)


@operation
def _matmul(a, worker, begin, end):
    x_codes, x_scales, x_sums = signed_bytes(a, 3), floats(a, 4), int32s(a, 5)
    weight = unsigned_bytes(a, 1), halves(a, 2)
    _matmul_range(a[7], begin, end, floats(a, 0), *weight, x_codes, x_scales, x_sums, floats(a, 6), a[8], a[9])
