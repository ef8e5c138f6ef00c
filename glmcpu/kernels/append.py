"""How keys and values are kept, and the writing of new ones: split into heads, turned by their positions, narrowed.

    keys    (B, H, 8, P, 16)   for each 128 positions, head, 16 of the positions and channel: the 16 side by side
    values  (B, H, 128, P)     for each 128 positions, head and position: one row of channels

in float32, float16 (uint16), or int8 with one scale for each head and position, the largest magnitude / 127. P is D
filled up with zeros to a multiple of 16. So both products of attention are sums of vectors times a number, as in
formats/f32.py, and nothing is summed across lanes; and a cache takes memory as it fills.

Kernels get keys and values as tuples: (numbers,), or (numbers, scales). Numba compiles the branch for that length only.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from glmcpu.kernels import BLOCK
from glmcpu.kernels.rotary import rotate
from glmcpu.simd.kernel import kernel
from glmcpu.simd.operation import floats, halves, int64s, operation, signed_bytes, tail
from glmcpu.simd.program import Program
from glmcpu.simd.vector import absolute, load, maximum, mul, reduce_max, scatter, splat, store

Layer = tuple[NDArray[Any], NDArray[Any], NDArray[np.float32], NDArray[np.float32]]
"""Keys, values, and for int8 the scales (B, H, 128) of both: one layer of a cache.KVCache."""


def append(
    program: Program,
    layer: Layer,
    qkv: NDArray[np.float32],
    cos: NDArray[np.float32],
    sin: NDArray[np.float32],
    places: NDArray[np.int64],
    heads: int,
    parts: int,
) -> NDArray[np.float32]:
    """Turns the keys of t new tokens and writes keys and values to positions `places` (t,) of one layer's cache.

    qkv (t, H*3*D) lies head by head as [q_h | k_h | v_h]; cos and sin (t, D/2) are as in rotary.py.
    Returns the turned queries (t, H, P), D filled up with zeros.
    """
    t, (_, H, _, P) = len(qkv), layer[1].shape
    D = qkv.shape[1] // (3 * heads)
    q, rows = program.empty(t, H, P), program.empty(program.threads, P)
    arguments = (*layer, q, qkv, cos, sin, places, rows, H, D, P, parts)
    program.add(_APPEND[layer[1].dtype.type], t * H, 16, *arguments)
    return q


@kernel()
def _append_range(keys, values, q, qkv, cos, sin, places, row, H, D, P, parts, begin, end):
    """Heads begin..end of the t * H new ones; `row` is room for one."""
    for i in range(D, P):
        row[i] = 0
    for new in range(begin, end):
        h, t, at = new % H, new // H, new * 3 * D
        place = (places[t] // BLOCK * H + h) * BLOCK + places[t] % BLOCK
        rotate(row, qkv, at, cos, sin, t * (D // 2), D, parts)
        for c in range(0, P, 16):
            store(q, new * P + c, load(row, c))
        rotate(row, qkv, at + D, cos, sin, t * (D // 2), D, parts)
        _to_codes(row, keys, place, P)
        for c in range(0, P, 16):
            scatter(keys[0], (place // 16 * P + c) * 16 + place % 16, 16, load(row, c))
        for i in range(D):
            row[i] = qkv[at + 2 * D + i]
        _to_codes(row, values, place, P)
        for c in range(0, P, 16):
            store(values[0], place * P + c, load(row, c))


@kernel()
def _to_codes(row, kept, place, P):
    """Divides the row by its scale and writes that down, where numbers have scales."""
    if len(kept) == 2:
        largest = splat(np.float32(0))
        for c in range(0, P, 16):
            largest = maximum(largest, absolute(load(row, c)))
        scale = reduce_max(largest) * np.float32(1 / 127)
        kept[1][place] = scale
        inverse = splat(np.float32(1) / scale if scale > np.float32(1e-30) else np.float32(0))
        for c in range(0, P, 16):
            store(row, c, mul(load(row, c), inverse))


@kernel()
def _append_of(keys, values, a, worker, begin, end):
    arrays = floats(a, 4), floats(a, 5), floats(a, 6), floats(a, 7), int64s(a, 8), tail(floats(a, 9), worker * a[12])
    _append_range(keys, values, *arrays, a[10], a[11], a[12], a[13], begin, end)


@operation
def _append_f32(a, worker, begin, end):
    _append_of((floats(a, 0),), (floats(a, 1),), a, worker, begin, end)


@operation
def _append_f16(a, worker, begin, end):
    _append_of((halves(a, 0),), (halves(a, 1),), a, worker, begin, end)


@operation
def _append_int8(a, worker, begin, end):
    _append_of((signed_bytes(a, 0), floats(a, 2)), (signed_bytes(a, 1), floats(a, 3)), a, worker, begin, end)


_APPEND = {np.float32: _append_f32, np.uint16: _append_f16, np.int8: _append_int8}
