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

Layer = tuple[NDArray[Any], NDArray[Any], NDArray[np.float32], NDArray[np.float32]]
"""keys, values, and for int8 the scales (H, S) of both: one layer of a cache.KVCache."""

_BLOCK = 128  # positions
_QUERIES = 32  # of a job


def append(
    program: Program, layer: Layer, k: NDArray[np.float32], v: NDArray[np.float32], places: NDArray[np.int64]
) -> None:
    """Writes k and v (t, H, P) of t new tokens to positions `places` (t,) of one layer's cache."""
    t, H, P = k.shape
    values = layer[1]
    program.add(_APPEND[values.dtype.type], t * H, 16, *layer, k, v, places, H, P, values.shape[1])


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
def _append_range(keys, values, k, v, places, H, P, S, begin, end):
    """Heads begin..end of the t * H new ones."""
    for new in range(begin, end):
        h, position = new % H, places[new // H]
        block = ((h * (S // 16) + position // 16) * P) * 16 + position % 16
        for c in range(0, P, 16):
            scatter(keys, block + c * 16, 16, load(k, new * P + c))
            store(values, (h * S + position) * P + c, load(v, new * P + c))


@kernel()
def _scale_of(x, at, n):
    largest = splat(np.float32(0))
    for c in range(at, at + n, 16):
        largest = maximum(largest, absolute(load(x, c)))
    return reduce_max(largest) * np.float32(1 / 127)


@kernel()
def _inverse(scale):
    return splat(np.float32(1) / scale if scale > np.float32(1e-30) else np.float32(0))


@kernel()
def _append_int8_range(keys, values, key_scales, value_scales, k, v, places, H, P, S, begin, end):
    """The same with codes and a scale, the largest magnitude / 127, for each head."""
    row = np.empty(P, np.int8)
    for new in range(begin, end):
        h, position, at = new % H, places[new // H], new * P
        key_scales[h * S + position] = key_scale = _scale_of(k, at, P)
        value_scales[h * S + position] = value_scale = _scale_of(v, at, P)
        for c in range(0, P, 16):
            store_codes(row, c, mul(load(k, at + c), _inverse(key_scale)))
            store_codes(values, (h * S + position) * P + c, mul(load(v, at + c), _inverse(value_scale)))
        block = ((h * (S // 16) + position // 16) * P) * 16 + position % 16
        for c in range(P):
            keys[block + c * 16] = row[c]


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
def _scale(scores, scales, at, width):
    """scores[s] *= scales[at + s], where there are scales."""
    if scales is not None:
        for s in range(0, width, 16):
            store(scores, s, mul(load(scores, s), load(scales, at + s)))


@kernel()
def _step(acc, running, cache, q, visible, scores, zero, n, t, begin, h, H, P, S, scale):
    """One block of positions for the n queries of the tile `zero`, from t on."""
    keys, values, key_scales, value_scales = cache
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
        _scale(row, key_scales, h * S + begin, wide)
        correction = _softmax(row, running[i * 32 : (i + 1) * 32], visible[t + i] - begin, wide)
        for c in range(0, P, 16):
            store(sums, c, mul(load(sums, c), correction))
        _scale(row, value_scales, h * S + begin, wide)
    if n == 1:
        _values_of_one(acc, scores, values, begin, width, h, P, S)
    else:
        _values(acc, scores, values, zero, begin, width, h, P, S)


@kernel()
def _attend_range(cache, out, q, visible, scratch, t, H, P, D, S, scale, begin, end):
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
                _step(*sums, cache, q, visible, scores, zeros(TILE), TILE, from_t + i, at, h, H, P, S, scale)
            for i in range(whole, n):
                sums = acc[i * P :], running[i * 32 :]
                _step(*sums, cache, q, visible, scores, zeros(1), 1, from_t + i, at, h, H, P, S, scale)
        for i in range(n):
            inverse = splat(np.float32(1) / running[i * 32 + 16])
            for c in range(0, P, 16):
                store(acc, i * P + c, mul(load(acc, i * P + c), inverse))
            for c in range(D):
                out[((from_t + i) * H + h) * D + c] = acc[i * P + c]


@operation
def _append_f32(a, worker, begin, end):
    layer, new = (floats(a, 0), floats(a, 1)), (floats(a, 4), floats(a, 5), int64s(a, 6))
    _append_range(*layer, *new, a[7], a[8], a[9], begin, end)


@operation
def _append_f16(a, worker, begin, end):
    layer, new = (halves(a, 0), halves(a, 1)), (floats(a, 4), floats(a, 5), int64s(a, 6))
    _append_range(*layer, *new, a[7], a[8], a[9], begin, end)


@operation
def _append_int8(a, worker, begin, end):
    layer = signed_bytes(a, 0), signed_bytes(a, 1), floats(a, 2), floats(a, 3)
    new = floats(a, 4), floats(a, 5), int64s(a, 6)
    _append_int8_range(*layer, *new, a[7], a[8], a[9], begin, end)


@kernel()
def _attend_of(layer, a, worker, begin, end):
    arrays = floats(a, 4), floats(a, 5), int64s(a, 6), floats(a, 7)[worker * a[8] :]
    _attend_range(layer, *arrays, a[9], a[10], a[11], a[12], a[13], number(a, 14), begin, end)


@operation
def _attend_f32(a, worker, begin, end):
    _attend_of((floats(a, 0), floats(a, 1), None, None), a, worker, begin, end)


@operation
def _attend_f16(a, worker, begin, end):
    _attend_of((halves(a, 0), halves(a, 1), None, None), a, worker, begin, end)


@operation
def _attend_int8(a, worker, begin, end):
    _attend_of((signed_bytes(a, 0), signed_bytes(a, 1), floats(a, 2), floats(a, 3)), a, worker, begin, end)


_APPEND = {np.float32: _append_f32, np.uint16: _append_f16, np.int8: _append_int8}
_ATTEND = {np.float32: _attend_f32, np.uint16: _attend_f16, np.int8: _attend_int8}
