"""int4_g32: four bits a weight and one half-precision scale for every 32 inputs of an output. The default.

    block b:  | inputs 0..7: 16 outputs x 4 bytes | inputs 8..15 | ...  nibbles as in _blocks.py, filled up to 32 inputs

A weight is (nibble - 8) * scale; 4.5 bits a weight. How scales are chosen and kept stands in _groups.py. The loop is
shared with int4_g64 and int4_g128, whose scales span 2 and 4 groups of 32 activations.
"""

import numpy as np
from numba import prange

from glmcpu.formats._blocks import nibbles, place_nibbles
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
from glmcpu.simd.vector import high_nibbles, load, load_bytes, load_part, low_nibbles, prefetch, splat

BITS_PER_WEIGHT = 4.5
EXACT = False
GROUP = 32
CODES = -8, 7


@kernel(parallel=True)
def place(out, codes):
    """Writes codes (o, I) i8 as nibbles (blocks, I/8, 16, 4)."""
    for b in prange(out.shape[0]):
        for lane in range(16):
            place_nibbles(out[b], codes[b * 16 + lane], lane)


@kernel()
def _block(zero, t, b, ahead, out, codes, scales, x_codes, x_scales, x_offsets, bias, G, O, shift):
    """out[t:t+n, block b], n = the size of the tile `zero`; a scale is for 32 << shift inputs."""
    acc, at, scales_at = zero, b * G * 256, b * (((G - 1) >> shift) + 1)
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
        scale = load(scales, (scales_at + (g >> shift)) * 16)
        acc = tile_scaled(acc, tile_total(sums, offsets), scale, x_scales, group, 1)
    n = min(O - b * 16, 16)
    tile_store(out, t * O + b * 16, O, acc, splat(np.float32(1)), load_part(bias, b * 16, n), n)


_matmul_range = tiled(_block)


@kernel()
def multiply(a, begin, end):
    """Blocks begin..end of the product whose arguments Grouped.matmul wrote to the slots `a`."""
    weight, x = (unsigned_bytes(a, 1), halves(a, 2)), (signed_bytes(a, 3), floats(a, 4), int32s(a, 5))
    _matmul_range(a[7], begin, end, floats(a, 0), *weight, *x, floats(a, 6), a[8], a[9], a[10])


@operation
def _matmul(a, worker, begin, end):
    multiply(a, begin, end)


_grouped = Grouped(GROUP, CODES, place, nibbles, _matmul)
layout, pack, store, decode, matmul = _grouped.layout, _grouped.pack, _grouped.store, _grouped.decode, _grouped.matmul
