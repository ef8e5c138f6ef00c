"""Attention of one sequence's tokens over its cache: softmax(q k / sqrt(D)) v, head by head.

The cache is kept so that both products are the matrix products of formats/f32.py, nothing summed across lanes:

    keys    (H, S/16, P, 16)   for each block of 16 positions and each channel, the 16 positions side by side
    values  (H, S, P)          one row of channels for each position

in float32 or float16 (uint16); P is D filled up with zeros to a multiple of 16. Query t attends to the first visible[t]
positions: ChatGLM's mask (the prompt sees the whole prompt, the answer what came before) is that one number. A job is
one head of a few queries (a register tile); sums run over positions in order, so results do not depend on the split.
"""

from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from glmcpu.kernels.threads import threads
from glmcpu.simd.kernel import kernel
from glmcpu.simd.tile import TILE, tile_fma, tile_store, zeros
from glmcpu.simd.vector import add, exp, first, load, maximum, mul, reduce_add, reduce_max, scatter, splat, store, sub


def append(keys: NDArray[Any], values: NDArray[Any], k: NDArray[np.float32], v: NDArray[np.float32], at: int) -> None:
    """Writes k and v (t, H, P) of t new tokens into one layer's cache from position `at` on."""
    t, H, P = k.shape
    flat = (keys.reshape(-1), values.reshape(-1), k.reshape(-1), v.reshape(-1), at, t, H, P, values.shape[1])
    if t < 4:  # too little to share
        _append_range(*flat, 0, H)
    else:
        _append_parallel(*flat, min(threads(), H))


def attend(
    out: NDArray[np.float32],
    q: NDArray[np.float32],
    keys: NDArray[Any],
    values: NDArray[Any],
    visible: NDArray[np.int64],
) -> None:
    """out (t, H*D) = attention of q (t, H, P) over one layer's cache; visible (t,) >= 1 positions each."""
    t, H, P = q.shape
    D, S = out.shape[1] // H, int(visible.max())
    scratch = np.empty((threads(), TILE, -(-S // 16) * 16), np.float32)
    flat = (out.reshape(-1), q.reshape(-1), keys.reshape(-1), values.reshape(-1), visible, scratch)
    _attend_parallel(*flat, t, H, P, D, values.shape[1], np.float32(1 / np.sqrt(D)))


@kernel()
def _append_range(keys, values, k, v, at, t, H, P, S, begin, end):
    for h in range(begin, end):
        for i in range(t):
            position, source = at + i, (i * H + h) * P
            block = ((h * (S // 16) + position // 16) * P) * 16 + position % 16
            for c in range(0, P, 16):
                scatter(keys, block + c * 16, 16, load(k, source + c))
                store(values, (h * S + position) * P + c, load(v, source + c))


@kernel(parallel=True)
def _append_parallel(keys, values, k, v, at, t, H, P, S, workers):
    for w in prange(workers):
        _append_range(keys, values, k, v, at, t, H, P, S, H * w // workers, H * (w + 1) // workers)


@kernel()
def _scores(scratch, q, keys, zero, at, key_base, S, P, H, scale):
    """scratch[i, s] = q_i . k_s * scale for the tile's queries and positions 0..S, by blocks of 16."""
    width = scratch.shape[1]
    flat, none = scratch.reshape(-1), splat(np.float32(0))
    for block in range((S + 15) // 16):
        acc, base = zero, key_base + block * P * 16
        for c in range(P):
            acc = tile_fma(acc, load(keys, base + c * 16), q, at + c, H * P)
        tile_store(flat, block * 16, width, acc, splat(scale), none, 16)


@kernel()
def _softmax(scores, n, S):
    """exp(score - max) over the first n of S scores, 0 beyond, in place; returns 1 / their sum."""
    lowest = np.float32(-np.inf)
    largest = splat(lowest)
    for s in range(0, n, 16):
        largest = maximum(largest, first(n - s, load(scores, s), lowest))
    shift, total = splat(reduce_max(largest)), splat(np.float32(0))
    for s in range(0, S, 16):
        p = exp(sub(first(n - s, load(scores, s), lowest), shift))
        store(scores, s, p)
        total = add(total, p)
    return np.float32(1) / reduce_add(total)


@kernel()
def _job(out, q, keys, values, visible, scratch, zero, n, t, h, H, P, D, S, scale):
    """Head h of queries t..t+n, n = the size of the tile `zero`."""
    reach = visible[t : t + n].max()
    _scores(scratch, q, keys, zero, (t * H + h) * P, h * S * P, reach, P, H, scale)
    width, none = scratch.shape[1], splat(np.float32(0))
    for i in range(n):
        inverse = splat(_softmax(scratch[i], visible[t + i], reach))
        for s in range(0, reach, 16):
            store(scratch[i], s, mul(load(scratch[i], s), inverse))
    flat = scratch.reshape(-1)
    for c in range(0, P, 16):
        acc = zero
        for s in range(reach):
            acc = tile_fma(acc, load(values, (h * S + s) * P + c), flat, s, width)
        tile_store(out, (t * H + h) * D + c, H * D, acc, splat(np.float32(1)), none, D - c)


@kernel(parallel=True)
def _attend_parallel(out, q, keys, values, visible, scratch, t, H, P, D, S, scale):
    workers, tiles = scratch.shape[0], t // TILE
    jobs = H * (tiles + t - tiles * TILE)
    for w in prange(workers):
        for job in range(w, jobs, workers):
            h, i = job % H, job // H
            if i < tiles:
                _job(out, q, keys, values, visible, scratch[w], zeros(TILE), TILE, i * TILE, h, H, P, D, S, scale)
            else:
                first_left = tiles * TILE + i - tiles
                _job(out, q, keys, values, visible, scratch[w], zeros(1), 1, first_left, h, H, P, D, S, scale)
