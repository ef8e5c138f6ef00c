"""Rounding a block of columns of a matrix to codes and scales, each error made up for by the columns still to come.

    rounded so far -->                 columns B-1, B-2, .. 0 of a block, in groups that share a scale
    error of column k  e = w - code * scale      column j < k is rounded as  w_j + sum of e_k * lower[k, j]

What that sum is for, and where `lower` comes from, is told in convert/gptq.py. A group's scale is searched where it
is reached: 32 candidates, 16 fractions of what maps the largest weight to either end of the codes, each round the whole
group in turn, one candidate a lane. The codes of the best get the scale that fits them best, and are rounded again
with it. A second kernel goes over codes that are there: each code is moved to where the error of the whole row is
smallest, then the scale of its group, given all others.

Rows do not know of each other: a row's result depends on that row only, whatever the number of threads.
"""

import numpy as np
from numba import prange
from numpy.typing import NDArray

from glmcpu.kernels.threads import threads
from glmcpu.simd.kernel import kernel
from glmcpu.simd.vector import div, float_of_half, fma, half_bits, load, mul, round_within, splat, store, sub

_FRACTIONS = np.linspace(0.65, 1.4, 16)
_TINY = np.float32(1e-7)  # weights below half precision's reach

Floats = NDArray[np.float32]


def round_block(
    codes: NDArray[np.int8],
    scales: Floats,
    errors: Floats,
    weight: Floats,
    updated: Floats,
    lower: Floats,
    pivots: Floats,
    begin: int,
    group: int,
    ends: tuple[int, int],
) -> None:
    """Rounds columns begin..begin+B of every row; B is a multiple of `group`, and that one of 16.

    codes    (o, I) i8        written in these columns
    scales   (o, I/group) f32 written for their groups; every one is a half-precision number
    errors   (o, I) f32       written: weight - code * scale
    weight   (o, I) f32
    updated  (o, B) f32       the columns with what they owe to the errors of columns from begin+B on; overwritten
    lower    (B, B) f32       [k, j]: how much of column k's error column j < k makes up for; 0 for j >= k
    pivots   (B,) f32         what an error of each column, so made up for, costs
    ends     lowest and highest code
    """
    low, high = ends
    shares = np.concatenate([1 / (low * _FRACTIONS), 1 / (high * _FRACTIONS)]).astype(np.float32)
    _round_parallel(
        codes, scales, errors, weight, updated, lower, pivots, begin, group, np.float32(low), np.float32(high), shares,
        threads(),
    )  # fmt: skip


def improve_block(
    codes: NDArray[np.int8],
    scales: Floats,
    errors: Floats,
    slopes: Floats,
    moments: Floats,
    begin: int,
    group: int,
    ends: tuple[int, int],
) -> None:
    """Moves codes, then scales, of columns begin..begin+B to where errors @ all moments @ errors.T is smallest.

    codes, scales, errors   as round_block left them; changed in these columns
    slopes    (o, B) f32    errors @ (all moments)[:, begin:begin+B]; overwritten
    moments   (B, B) f32    of these columns, symmetric, the diagonal positive
    """
    low, high = (np.float32(end) for end in ends)
    _improve_parallel(codes, scales, errors, slopes, moments, begin, group, low, high, threads())


@kernel()
def _half(x):
    return float_of_half(half_bits(np.float32(x)))


@kernel()
def _code(x, scale, low, high):
    return min(max(np.rint(x / scale), low), high) if scale != 0 else np.float32(0)


@kernel()
def _largest(values, at, n):
    largest = np.float32(0)
    for k in range(at, at + n):
        if abs(values[k]) > abs(largest):
            largest = values[k]
    return largest


@kernel()
def _add_row(out, factor, rows, at, n):
    """out[:n] += factor * rows[at:at+n], n filled up to a multiple of 16."""
    f = splat(np.float32(factor))
    for j in range(0, n, 16):
        store(out, j, fma(f, load(rows, at + j), load(out, j)))


@kernel()
def _best_candidate(lanes, losses, updated, weight, lower, pivots, at, n, B, largest, shares, low, high):
    """The scale, of the candidates, with which rounding the group from column `at` on in turn costs the least."""
    scale_a, scale_b = mul(splat(largest), load(shares, 0)), mul(splat(largest), load(shares, 16))
    inverse_a, inverse_b = div(splat(np.float32(1)), scale_a), div(splat(np.float32(1)), scale_b)
    loss_a, loss_b = splat(np.float32(0)), splat(np.float32(0))
    for k in range(n):
        x = splat(updated[at + k])
        store(lanes, 32 * k, x)
        store(lanes, 32 * k + 16, x)
    for k in range(n - 1, -1, -1):
        a, b, w = load(lanes, 32 * k), load(lanes, 32 * k + 16), splat(weight[at + k])
        rounded_a = mul(round_within(mul(a, inverse_a), low, high), scale_a)
        rounded_b = mul(round_within(mul(b, inverse_b), low, high), scale_b)
        left_a, left_b, pivot = sub(a, rounded_a), sub(b, rounded_b), splat(pivots[at + k])
        loss_a = fma(mul(left_a, left_a), pivot, loss_a)
        loss_b = fma(mul(left_b, left_b), pivot, loss_b)
        error_a, error_b = sub(w, rounded_a), sub(w, rounded_b)
        row = (at + k) * B + at
        for j in range(k):
            share = splat(lower[row + j])
            store(lanes, 32 * j, fma(share, error_a, load(lanes, 32 * j)))
            store(lanes, 32 * j + 16, fma(share, error_b, load(lanes, 32 * j + 16)))
    store(losses, 0, loss_a)
    store(losses, 16, loss_b)
    best = 0
    for c in range(1, 32):
        if losses[c] < losses[best]:
            best = c
    return largest * shares[best]


@kernel()
def _fitted(scale, a, b, updated, weight, lower, pivots, at, n, B, low, high):
    """The scale that suits the codes which `scale` gives the group best: the error is linear in it."""
    for k in range(n):
        a[k] = updated[at + k]
        b[k] = np.float32(0)
    # a - scale * b is what is left of each column after its code: first find the codes, with the scale that is there.
    numerator, denominator = np.float32(0), np.float32(0)
    for k in range(n - 1, -1, -1):
        code = _code(a[k] - scale * b[k], scale, low, high)
        target, made = a[k], b[k] + code
        numerator += pivots[at + k] * target * made
        denominator += pivots[at + k] * made * made
        row = (at + k) * B + at
        _add_row(a, weight[at + k], lower, row, k)
        _add_row(b, code, lower, row, k)
    if denominator > 0:
        fitted = numerator / denominator
        if abs(fitted) < np.float32(60000):
            return fitted
    return scale


@kernel()
def _round_row(codes, scales, errors, weight, updated, lower, pivots, begin, group, low, high, shares, scratch):
    B = updated.size
    lanes, losses, a, b = scratch[64:], scratch[:32], scratch[64 : 64 + group], scratch[64 + group : 64 + 2 * group]
    for at in range(B - group, -1, -group):
        largest, scale = _largest(updated, at, group), np.float32(0)
        if abs(largest) > _TINY:
            scale = _best_candidate(
                lanes, losses, updated, weight, lower, pivots, at, group, B, largest, shares, low, high
            )
            scale = _half(_fitted(scale, a, b, updated, weight, lower, pivots, at, group, B, low, high))
        scales[(begin + at) // group] = scale
        for k in range(at + group - 1, at - 1, -1):
            code = _code(updated[k], scale, low, high)
            codes[begin + k] = np.int8(code)
            error = weight[k] - code * scale
            errors[begin + k] = error
            _add_row(updated, error, lower, k * B, k)


@kernel(parallel=True)
def _round_parallel(codes, scales, errors, weight, updated, lower, pivots, begin, group, low, high, shares, workers):
    o, B = updated.shape
    flat = lower.reshape(-1)
    for w in prange(workers):
        scratch = np.empty(64 + 32 * group, np.float32)
        for r in range(o * w // workers, o * (w + 1) // workers):
            _round_row(
                codes[r], scales[r], errors[r], weight[r, begin : begin + B], updated[r], flat, pivots, begin, group,
                low, high, shares, scratch,
            )  # fmt: skip


@kernel()
def _refit(codes, scales, errors, slopes, moments, begin, at, group, made):
    """Gives a group the scale with the smallest error for its codes; slopes follow."""
    B = slopes.size
    for j in range(group):
        made[j] = np.float32(0)
    numerator = np.float32(0)
    for k in range(at, at + group):
        code = np.float32(codes[begin + k])
        numerator += code * slopes[k]
        _add_row(made, code, moments, k * B + at, group)
    denominator = np.float32(0)
    for k in range(group):
        denominator += np.float32(codes[begin + at + k]) * made[k]
    g = (begin + at) // group
    before = scales[g]
    if denominator > 0 and abs(before + numerator / denominator) < np.float32(60000):
        scales[g] = _half(before + numerator / denominator)
        change = scales[g] - before
        for k in range(at, at + group):
            code = np.float32(codes[begin + k])
            errors[begin + k] -= change * code
            _add_row(slopes, -change * code, moments, k * B, B)


@kernel()
def _improve_row(codes, scales, errors, slopes, moments, begin, group, low, high, made):
    B = slopes.size
    for at in range(0, B, group):
        scale = scales[(begin + at) // group]
        if scale != 0:
            for k in range(at, at + group):
                before = np.float32(codes[begin + k])
                code = min(max(np.rint(before + slopes[k] / (moments[k * B + k] * scale)), low), high)
                if code != before:
                    change = (before - code) * scale
                    codes[begin + k] = np.int8(code)
                    errors[begin + k] += change
                    _add_row(slopes, change, moments, k * B, B)
            _refit(codes, scales, errors, slopes, moments, begin, at, group, made)


@kernel(parallel=True)
def _improve_parallel(codes, scales, errors, slopes, moments, begin, group, low, high, workers):
    o = slopes.shape[0]
    flat = moments.reshape(-1)
    for w in prange(workers):
        made = np.empty(group, np.float32)
        for r in range(o * w // workers, o * (w + 1) // workers):
            _improve_row(codes[r], scales[r], errors[r], slopes[r], flat, begin, group, low, high, made)
