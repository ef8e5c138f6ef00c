"""Attention of one sequence's tokens over its cache: softmax(q k / sqrt(D)) v, head by head, in one pass.

Query t attends to the first visible[t] positions: ChatGLM's mask (the prompt sees the whole prompt, the answer what
came before) is that one number. How the cache is kept stands in append.py.

A job is one head of up to 32 queries. It goes through the positions in blocks of 128, each read once: scores of the
block, running maximum, e**(score - maximum), values; what was summed so far is scaled down whenever the maximum grows
(Milakov & Gimelshein 2018, Dao et al. 2022). So a T x T matrix never exists. The blocks are the same for every query
and sums run over positions in order, so results depend neither on the threads nor on the other queries.
"""

import numpy as np
from numpy.typing import NDArray

from glmcpu.kernels import BLOCK
from glmcpu.kernels.append import Layer
from glmcpu.simd.kernel import kernel
from glmcpu.simd.operation import floats, halves, int64s, number, operation, signed_bytes, tail
from glmcpu.simd.program import Program
from glmcpu.simd.tile import TILE, tile_fma, tile_fma_rows, tile_load, tile_store, zeros
from glmcpu.simd.vector import (
    add,
    exp,
    first,
    load,
    maximum,
    mul,
    prefetch_far,
    reduce_add,
    reduce_max,
    splat,
    store,
    sub,
)

_QUERIES = 32  # of a job
_RUNNING = 32  # numbers for each query: 16 times the largest score so far, 16 times the sum


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
    D = out.shape[1] // H
    scratch = program.empty(program.threads, TILE * BLOCK + _QUERIES * (P + _RUNNING))
    arguments = (*layer, out, q, visible, scratch, scratch.shape[1], t, H, P, D, float(1 / np.sqrt(D)))
    program.add(_ATTEND[values.dtype.type], H * -(-t // _QUERIES), 1, *arguments)


@kernel()
def _scores(scores, q, keys, zero, q_at, q_stride, place, width, P, scale):
    """scores[i, s] = q_i . k_(place + s) * scale for the tile's queries, s in 0..width; blocks of 16."""
    none = splat(np.float32(0))
    for s in range(0, width, 16):
        acc, at = zero, (place + s) * P
        for c in range(P):
            acc = tile_fma(acc, load(keys, at + c * 16), q, q_at + c, q_stride)
        tile_store(scores, s, BLOCK, acc, splat(scale), none, 16)


@kernel()
def _scores_of_one(scores, q, keys, values, q_at, place, width, P, scale):
    """The same for one query; four blocks at a time, since additions to one register would wait for each other."""
    for s in range(0, width, 64):
        arguments = scores, q, keys, values, q_at, place, s, P, scale
        if width - s > 48:
            _some_scores_of_one(zeros(4), 4, *arguments)
        elif width - s > 32:
            _some_scores_of_one(zeros(3), 3, *arguments)
        elif width - s > 16:
            _some_scores_of_one(zeros(2), 2, *arguments)
        else:
            _some_scores_of_one(zeros(1), 1, *arguments)


@kernel()
def _some_scores_of_one(acc, n, scores, q, keys, values, q_at, place, s, P, scale):
    """n blocks from position place + s on. Meanwhile their values are fetched: they are read next."""
    at = (place + s) * P
    for c in range(P):
        prefetch_far(values, at + c * n * 16)
        prefetch_far(values, at + c * n * 16 + 32)
        acc = tile_fma_rows(acc, keys, at + c * 16, P * 16, q[q_at + c])
    tile_store(scores, s, 16, acc, splat(scale), splat(np.float32(0)), 16)


@kernel()
def _scale(scores, kept, at, width):
    """scores[s] times the scale of position at + s, where numbers have scales."""
    if len(kept) == 2:
        for s in range(0, width, 16):
            store(scores, s, mul(load(scores, s), load(kept[1], at + s)))


@kernel()
def _softmax(scores, running, n, width):
    """Scores of a block, of which n are visible, to e**(score - largest so far).

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
def _values(sums, scores, values, zero, place, width, P):
    """sums[i] += sum over s of scores[i, s] * v_(place + s) for the tile's queries."""
    one, none = splat(np.float32(1)), splat(np.float32(0))
    for c in range(0, P, 16):
        acc, at = tile_load(zero, sums, c, P), place * P + c
        for s in range(width):
            acc = tile_fma(acc, load(values, at + s * P), scores, s, BLOCK)
        tile_store(sums, c, P, acc, one, none, 16)


@kernel()
def _values_of_one(sums, scores, keys, following, fetched, values, place, width, P):
    """The same for one query, up to 128 channels at a time.

    Meanwhile the keys of `fetched` positions from `following` on are, in equal shares.
    """
    one, none, whole = splat(np.float32(1)), splat(np.float32(0)), P // 128 * 128
    share = (fetched + width - 1) // width
    for c in range(0, whole, 128):
        acc, at = tile_load(zeros(8), sums, c, 16), place * P + c
        for s in range(width):
            for row in range(s * share, min((s + 1) * share, fetched)):
                for i in range(0, 128, 32):
                    prefetch_far(keys, following + c * fetched + row * 128 + i)
            acc = tile_fma_rows(acc, values, at + s * P, 16, scores[s])
        tile_store(sums, c, 16, acc, one, none, 16)
    for c in range(whole, P, 16):
        single, at = tile_load(zeros(1), sums, c, 16), place * P + c
        for s in range(width):
            single = tile_fma_rows(single, values, at + s * P, 16, scores[s])
        tile_store(sums, c, 16, single, one, none, 16)


@kernel()
def _step(sums, running, scores, keys, values, q, visible, zero, n, t, begin, h, H, P, scale):
    """One block of positions for the n queries of the tile `zero`, from t on."""
    reach = _reach(visible, t, n)
    width = min(BLOCK, reach - begin)
    if width <= 0:
        return
    place = (begin // BLOCK * H + h) * BLOCK
    if n == 1:
        _scores_of_one(scores, q, keys[0], values[0], (t * H + h) * P, place, width, P, scale)
    else:
        _scores(scores, q, keys[0], zero, (t * H + h) * P, H * P, place, width, P, scale)
    for i in range(n):
        row = tail(scores, i * BLOCK)
        _scale(row, keys, place, width)
        correction = _softmax(row, tail(running, i * _RUNNING), visible[t + i] - begin, width)
        for c in range(i * P, (i + 1) * P, 16):
            store(sums, c, mul(load(sums, c), correction))
        _scale(row, values, place, width)
    if n == 1:
        # The keys of the next block, or of the next head's first; they lie by 16 positions.
        last = begin + BLOCK >= reach
        following, left = ((h + 1) * BLOCK, reach) if last else (place + H * BLOCK, reach - begin - BLOCK)
        fetched = min((left + 15) // 16 * 16, BLOCK)
        _values_of_one(sums, scores, keys[0], following * P, fetched, values[0], place, width, P)
    else:
        _values(sums, scores, values[0], zero, place, width, P)


@kernel()
def _reach(visible, t, n):
    """The most positions that one of the n queries from t on attends to."""
    reach = np.int64(0)
    for i in range(t, t + n):
        reach = max(reach, visible[i])
    return reach


@kernel()
def _attend_range(keys, values, out, q, visible, scores, sums, running, t, H, P, D, scale, begin, end):
    """Jobs begin..end: head by head, 32 queries each."""
    jobs = (t + _QUERIES - 1) // _QUERIES
    nothing, lowest = splat(np.float32(0)), splat(np.float32(-np.inf))
    for job in range(begin, end):
        h, from_t = job // jobs, job % jobs * _QUERIES
        n = min(_QUERIES, t - from_t)
        for i in range(n):
            store(running, i * _RUNNING, lowest)
            store(running, i * _RUNNING + 16, nothing)
            for c in range(i * P, (i + 1) * P, 16):
                store(sums, c, nothing)
        for at in range(0, _reach(visible, from_t, n), BLOCK):
            i = 0
            while i < n:
                own = tail(sums, i * P), tail(running, i * _RUNNING), scores
                if n - i >= TILE:
                    _step(*own, keys, values, q, visible, zeros(TILE), TILE, from_t + i, at, h, H, P, scale)
                    i += TILE
                else:
                    _step(*own, keys, values, q, visible, zeros(1), 1, from_t + i, at, h, H, P, scale)
                    i += 1
        for i in range(n):
            inverse = np.float32(1) / running[i * _RUNNING + 16]
            for c in range(D):
                out[((from_t + i) * H + h) * D + c] = sums[i * P + c] * inverse


@kernel()
def _attend_of(keys, values, a, worker, begin, end):
    P, scores = a[11], tail(floats(a, 7), worker * a[8])
    sums = tail(scores, TILE * BLOCK)
    arrays = floats(a, 4), floats(a, 5), int64s(a, 6), scores, sums, tail(sums, _QUERIES * P)
    _attend_range(keys, values, *arrays, a[9], a[10], P, a[12], number(a, 13), begin, end)


@operation
def _attend_f32(a, worker, begin, end):
    _attend_of((floats(a, 0),), (floats(a, 1),), a, worker, begin, end)


@operation
def _attend_f16(a, worker, begin, end):
    _attend_of((halves(a, 0),), (halves(a, 1),), a, worker, begin, end)


@operation
def _attend_int8(a, worker, begin, end):
    _attend_of((signed_bytes(a, 0), floats(a, 2)), (signed_bytes(a, 1), floats(a, 3)), a, worker, begin, end)


_ATTEND = {np.float32: _attend_f32, np.uint16: _attend_f16, np.int8: _attend_int8}
