"""Attention of one sequence's tokens over its cache: softmax(q k / sqrt(D)) v, head by head, in one pass.

The cache is kept so that both products are the matrix products of formats/f32.py, nothing summed across lanes:

    keys    (H, S/16, P, 16)   for each block of 16 positions and each channel, the 16 positions side by side
    values  (H, S, P)          one row of channels for each position

in float32, float16 (uint16), or int8 with one scale for each head and position; P is D filled up with zeros to a
multiple of 16, S is a multiple of 64. Query t attends to the first visible[t] positions: ChatGLM's mask (the prompt
sees the whole prompt, the answer what came before) is that one number.

A job is one head of up to 32 queries. It goes through the positions in blocks of 128, each read once: scores of the
block, running maximum, e**(score - maximum), values; what was summed so far is scaled down whenever the maximum grows
(Milakov & Gimelshein 2018, Dao et al. 2022). So a T x T matrix never exists. The blocks are the same for every query
and sums run over positions in order, so results depend neither on the threads nor on the other queries.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from glmcpu.kernels.rotary import rotate
from glmcpu.simd.kernel import kernel
from glmcpu.simd.operation import floats, halves, int64s, number, operation, signed_bytes
from glmcpu.simd.program import Program
from glmcpu.simd.tile import TILE, tile_fma, tile_fma_rows, tile_load, tile_store, zeros
from glmcpu.simd.vector import (
    absolute,
    add,
    exp,
    first,
    load,
    maximum,
    mul,
    reduce_add,
    reduce_max,
    scatter,
    splat,
    store,
    store_codes,
    sub,
)

# Below, a layer is a tuple of two arrays, or of four with scales: Numba compiles only the branch that fits its length.
Layer = tuple[NDArray[Any], NDArray[Any], NDArray[np.float32], NDArray[np.float32]]
"""keys, values, and for int8 the scales (H, S) of both: one layer of a cache.KVCache."""

_BLOCK = 128  # positions
_QUERIES = 32  # of a job


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
    t, H, S, P = len(qkv), *layer[1].shape
    q = program.empty(t, H, P)
    D = qkv.shape[1] // (3 * heads)
    program.add(_APPEND[layer[1].dtype.type], t * H, 16, *layer, q, qkv, cos, sin, places, H, D, P, S, parts)
    return q


def attend(
    program: Program,
    out: NDArray[np.float32],
    q: NDArray[np.float32],
    layer: Layer,
    visible: NDArray[np.int64],
) -> None:
    """out (t, H*D) = attention of q (t, H, P) over one layer's cache; visible (t,) >= 1 positions each."""
    t, H, P = q.shape
    values = layer[1]
    D, S = out.shape[1] // H, values.shape[1]
    scratch = program.empty(program.threads, TILE * _BLOCK + _QUERIES * (P + 32))
    arguments = (*layer, out, q, visible, scratch, scratch.shape[1], t, H, P, D, S, float(1 / np.sqrt(D)))
    program.add(_ATTEND[values.dtype.type], H * -(-t // _QUERIES), 1, *arguments)


@kernel()
def _append_range(layer, q, qkv, cos, sin, places, H, D, P, S, parts, begin, end):
    """Heads begin..end of the t * H new ones."""
    row = np.zeros(P, np.float32)
    for new in range(begin, end):
        h, t, at = new % H, new // H, new * 3 * D
        position = places[t]
        rotate(row, qkv, at, cos, sin, t * (D // 2), D, parts)
        q[new * P : (new + 1) * P] = row
        rotate(row, qkv, at + D, cos, sin, t * (D // 2), D, parts)
        _write_key(layer, row, ((h * (S // 16) + position // 16) * P) * 16 + position % 16, h * S + position)
        row[:D] = qkv[at + 2 * D : at + 3 * D]
        _write_value(layer, row, h * S + position)


@kernel()
def _write_key(layer, row, at, place):
    """One head's key, every 16th number from `at` on."""
    if len(layer) == 2:
        for c in range(0, row.size, 16):
            scatter(layer[0], at + c * 16, 16, load(row, c))
    else:
        codes = np.empty(row.size, np.int8)
        layer[2][place] = _quantize(codes, 0, row)
        for c in range(row.size):
            layer[0][at + c * 16] = codes[c]


@kernel()
def _write_value(layer, row, place):
    """One head's value, side by side."""
    if len(layer) == 2:
        for c in range(0, row.size, 16):
            store(layer[1], place * row.size + c, load(row, c))
    else:
        layer[3][place] = _quantize(layer[1], place * row.size, row)


@kernel()
def _quantize(codes, at, row):
    """Writes row / scale, rounded; returns the scale, the largest magnitude / 127."""
    largest = splat(np.float32(0))
    for c in range(0, row.size, 16):
        largest = maximum(largest, absolute(load(row, c)))
    scale = reduce_max(largest) * np.float32(1 / 127)
    inverse = splat(np.float32(1) / scale if scale > np.float32(1e-30) else np.float32(0))
    for c in range(0, row.size, 16):
        store_codes(codes, at + c, mul(load(row, c), inverse))
    return scale


@kernel()
def _scores(scores, q, keys, zero, q_at, q_stride, begin, width, h, P, S, scale):
    """scores[i, s] = q_i . k_(begin + s) * scale for the tile's queries, s in 0..width; blocks of 16."""
    none = splat(np.float32(0))
    for s in range(0, width, 16):
        acc, at = zero, (h * S + begin + s) * P
        for c in range(P):
            acc = tile_fma(acc, load(keys, at + c * 16), q, q_at + c, q_stride)
        tile_store(scores, s, _BLOCK, acc, splat(scale), none, 16)


@kernel()
def _scores_of_one(scores, q, keys, q_at, begin, width, h, P, S, scale):
    """The same for one query; four blocks at a time, since additions to one register would wait for each other."""
    none = splat(np.float32(0))
    for s in range(0, width, 64):
        acc, at = zeros(4), (h * S + begin + s) * P
        for c in range(P):
            acc = tile_fma_rows(acc, keys, at + c * 16, P * 16, q[q_at + c])
        tile_store(scores, s, 16, acc, splat(scale), none, 16)


@kernel()
def _softmax(scores, running, n, width):
    """Scores of a block, of which n are visible, to e**(score - maximum); running: [16 times the maximum | sum].

    Returns what the earlier sums are to be multiplied by.
    """
    lowest = np.float32(-np.inf)
    before = load(running, 0)
    largest = before
    for s in range(0, width, 16):
        largest = maximum(largest, first(n - s, load(scores, s), lowest))
    shift, total = splat(reduce_max(largest)), splat(np.float32(0))
    for s in range(0, width, 16):
        p = exp(sub(first(n - s, load(scores, s), lowest), shift))
        store(scores, s, p)
        total = add(total, p)
    correction = exp(sub(before, shift))
    store(running, 0, shift)
    store(running, 16, add(mul(load(running, 16), correction), splat(reduce_add(total))))
    return correction


@kernel()
def _values(acc, scores, values, zero, begin, width, h, P, S):
    """acc[i] += sum over s of scores[i, s] * v_(begin + s) for the tile's queries."""
    one, none = splat(np.float32(1)), splat(np.float32(0))
    for c in range(0, P, 16):
        tile, at = tile_load(zero, acc, c, P), (h * S + begin) * P + c
        for s in range(width):
            tile = tile_fma(tile, load(values, at + s * P), scores, s, _BLOCK)
        tile_store(acc, c, P, tile, one, none, 16)


@kernel()
def _values_of_one(acc, scores, values, begin, width, h, P, S):
    """The same for one query, up to 128 channels at a time."""
    one, none, whole = splat(np.float32(1)), splat(np.float32(0)), P // 128 * 128
    for c in range(0, whole, 128):
        tile, at = tile_load(zeros(8), acc, c, 16), (h * S + begin) * P + c
        for s in range(width):
            tile = tile_fma_rows(tile, values, at + s * P, 16, scores[s])
        tile_store(acc, c, 16, tile, one, none, 16)
    for c in range(whole, P, 16):
        single, at = tile_load(zeros(1), acc, c, 16), (h * S + begin) * P + c
        for s in range(width):
            single = tile_fma_rows(single, values, at + s * P, 16, scores[s])
        tile_store(acc, c, 16, single, one, none, 16)


@kernel()
def _scale_keys(scores, layer, at, width):
    """scores[s] times the scale of key at + s, where keys have scales."""
    if len(layer) == 4:
        for s in range(0, width, 16):
            store(scores, s, mul(load(scores, s), load(layer[2], at + s)))


@kernel()
def _scale_values(scores, layer, at, width):
    """scores[s] times the scale of value at + s, where values have scales."""
    if len(layer) == 4:
        for s in range(0, width, 16):
            store(scores, s, mul(load(scores, s), load(layer[3], at + s)))


@kernel()
def _step(acc, running, layer, q, visible, scores, zero, n, t, begin, h, H, P, S, scale):
    """One block of positions for the n queries of the tile `zero`, from t on."""
    keys, values = layer[0], layer[1]
    reach = np.int64(0)
    for i in range(n):
        reach = max(reach, visible[t + i])
    width = min(_BLOCK, reach - begin)
    if width <= 0:
        return
    wide = (width + 15) // 16 * 16
    if n == 1:
        _scores_of_one(scores, q, keys, (t * H + h) * P, begin, width, h, P, S, scale)
    else:
        _scores(scores, q, keys, zero, (t * H + h) * P, H * P, begin, width, h, P, S, scale)
    for i in range(n):
        row, sums = scores[i * _BLOCK : (i + 1) * _BLOCK], acc[i * P : (i + 1) * P]
        _scale_keys(row, layer, h * S + begin, wide)
        correction = _softmax(row, running[i * 32 : (i + 1) * 32], visible[t + i] - begin, wide)
        for c in range(0, P, 16):
            store(sums, c, mul(load(sums, c), correction))
        _scale_values(row, layer, h * S + begin, wide)
    if n == 1:
        _values_of_one(acc, scores, values, begin, width, h, P, S)
    else:
        _values(acc, scores, values, zero, begin, width, h, P, S)


@kernel()
def _attend_range(layer, out, q, visible, scratch, t, H, P, D, S, scale, begin, end):
    """Jobs begin..end: head by head, 32 queries each."""
    jobs = (t + _QUERIES - 1) // _QUERIES
    scores, acc = scratch[: TILE * _BLOCK], scratch[TILE * _BLOCK :]
    running = acc[_QUERIES * P :]
    for job in range(begin, end):
        h, from_t = job // jobs, job % jobs * _QUERIES
        n = min(_QUERIES, t - from_t)
        reach = np.int64(0)
        for i in range(n):
            reach = max(reach, visible[from_t + i])
            acc[i * P : (i + 1) * P] = 0
            running[i * 32 : i * 32 + 16] = -np.inf
            running[i * 32 + 16 : i * 32 + 32] = 0
        whole = n // TILE * TILE
        for at in range(0, reach, _BLOCK):
            for i in range(0, whole, TILE):
                sums = acc[i * P :], running[i * 32 :]
                _step(*sums, layer, q, visible, scores, zeros(TILE), TILE, from_t + i, at, h, H, P, S, scale)
            for i in range(whole, n):
                sums = acc[i * P :], running[i * 32 :]
                _step(*sums, layer, q, visible, scores, zeros(1), 1, from_t + i, at, h, H, P, S, scale)
        for i in range(n):
            inverse = splat(np.float32(1) / running[i * 32 + 16])
            for c in range(0, P, 16):
                store(acc, i * P + c, mul(load(acc, i * P + c), inverse))
            for c in range(D):
                out[((from_t + i) * H + h) * D + c] = acc[i * P + c]


@kernel()
def _append_of(layer, a, begin, end):
    arrays = floats(a, 4), floats(a, 5), floats(a, 6), floats(a, 7), int64s(a, 8)
    _append_range(layer, *arrays, a[9], a[10], a[11], a[12], a[13], begin, end)


@kernel()
def _attend_of(layer, a, worker, begin, end):
    arrays = floats(a, 4), floats(a, 5), int64s(a, 6), floats(a, 7)[worker * a[8] :]
    _attend_range(layer, *arrays, a[9], a[10], a[11], a[12], a[13], number(a, 14), begin, end)


@operation
def _append_f32(a, worker, begin, end):
    _append_of((floats(a, 0), floats(a, 1)), a, begin, end)


@operation
def _append_f16(a, worker, begin, end):
    _append_of((halves(a, 0), halves(a, 1)), a, begin, end)


@operation
def _append_int8(a, worker, begin, end):
    _append_of((signed_bytes(a, 0), signed_bytes(a, 1), floats(a, 2), floats(a, 3)), a, begin, end)


@operation
def _attend_f32(a, worker, begin, end):
    _attend_of((floats(a, 0), floats(a, 1)), a, worker, begin, end)


@operation
def _attend_f16(a, worker, begin, end):
    _attend_of((halves(a, 0), halves(a, 1)), a, worker, begin, end)


@operation
def _attend_int8(a, worker, begin, end):
    _attend_of((signed_bytes(a, 0), signed_bytes(a, 1), floats(a, 2), floats(a, 3)), a, worker, begin, end)


_APPEND = {np.float32: _append_f32, np.uint16: _append_f16, np.int8: _append_int8}
_ATTEND = {np.float32: _attend_f32, np.uint16: _attend_f16, np.int8: _attend_int8}
