"""int3_g32: three bits a weight and one half-precision scale for every 32 inputs of an output.

    block b:  | inputs 0..31: three vectors of 16 outputs x 4 bytes | inputs 32..63: three vectors | ...

    byte 4*row + i of vector j:   bit  0 1 2         3 4 5             6 7
                                  inputs 8*j + i   | 8*j + 4 + i   |  piece j of inputs 24 + i and 28 + i

A weight is (code - 4) * scale, code 0..7; 3.5 bits a weight. Each vector holds two whole codes and a piece of two bits;
the three pieces, the lowest first, are the six bits of the last two codes, the first of them in the low half. A plane
of two bits and one of one bit would be a simpler picture, but every code would take two shifts and two masks; here six
codes of eight take one mask, and three of them a shift. How scales are chosen and kept stands in _groups.py.
"""

from typing import Any

import numpy as np
from numba import prange

from glmcpu.formats._groups import Grouped
from glmcpu.formats._tiles import tiled
from glmcpu.simd.kernel import kernel
from glmcpu.simd.operation import floats, halves, int32s, operation, signed_bytes, unsigned_bytes
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
from glmcpu.simd.vector import bits, join, load, load_bytes, load_part, prefetch, splat

BITS_PER_WEIGHT = 3.5
EXACT = False
GROUP = 32
CODES = -4, 3


def _numbers(xp: Any, codes: Any) -> Any:
    """Codes (n, 3 * I/32, 4) of n rows as whole numbers -4..3, (n, I) i8."""
    a = codes.reshape(len(codes), -1, 3, 4)
    pieces = (a[:, :, 0] >> 6) | (a[:, :, 1] >> 6 << 2) | (a[:, :, 2] >> 6 << 4)
    whole = [part for j in range(3) for part in (a[:, :, j], a[:, :, j] >> 3)]
    eight = xp.stack([*whole, pieces, pieces >> 3], 2) & 7
    return eight.reshape(len(codes), -1).view(xp.int8) - 4


@kernel(parallel=True)
def _place(out, codes):
    """Writes codes (o, I) i8 as such vectors."""
    for b in prange(out.shape[0]):
        for lane in range(16):
            row = codes[b * 16 + lane]
            for g in range(out.shape[1] // 3):
                for i in range(4):
                    at = g * 32 + i
                    last = (row[at + 24] + 4) | ((row[at + 28] + 4) << 3)
                    for j in range(3):
                        two = (row[at + 8 * j] + 4) | ((row[at + 8 * j + 4] + 4) << 3)
                        out[b, 3 * g + j, lane, i] = np.uint8(two | (((last >> (2 * j)) & 3) << 6))


@kernel()
def _block(zero, t, b, ahead, out, codes, scales, x_codes, x_scales, x_offsets, bias, G, O):
    """out[t:t+n, block b], n = the size of the tile `zero`."""
    acc, at = zero, b * G * 192
    for g in range(G):
        group = t * G + g * tokens(zero)
        offsets = tile_offsets(zero, x_offsets, group, 1)
        sums = tile_sums(offsets)
        x_at, last = group * 32, load_bytes(codes, at)  # any bytes: three steps push them out
        for j in range(steps(3)):
            prefetch(codes, at + 64 * j + ahead)
            three = load_bytes(codes, at + 64 * j)
            sums = tile_dot_nibbles(sums, bits(three, 0, 7), x_codes, x_at + 8 * j, 32)
            sums = tile_dot_nibbles(sums, bits(three, 3, 7), x_codes, x_at + 8 * j + 4, 32)
            last = join(bits(last, 2, 63), bits(three, 0, 192))
        sums = tile_dot_nibbles(sums, bits(last, 2, 7), x_codes, x_at + 24, 32)
        sums = tile_dot_nibbles(sums, bits(last, 5, 7), x_codes, x_at + 28, 32)
        at += 192
        acc = tile_scaled(acc, tile_total(sums, offsets), load(scales, (b * G + g) * 16), x_scales, group, 1)
    n = min(O - b * 16, 16)
    tile_store(out, t * O + b * 16, O, acc, splat(np.float32(1)), load_part(bias, b * 16, n), n)


_matmul_range = tiled(_block)


@operation
def _matmul(a, worker, begin, end):
    weight, x = (unsigned_bytes(a, 1), halves(a, 2)), (signed_bytes(a, 3), floats(a, 4), int32s(a, 5))
    _matmul_range(a[7], begin, end, floats(a, 0), *weight, *x, floats(a, 6), a[8], a[9])


_grouped = Grouped(GROUP, CODES, _place, _numbers, _matmul)
layout, pack, store, decode, matmul = _grouped.layout, _grouped.pack, _grouped.store, _grouped.decode, _grouped.matmul
