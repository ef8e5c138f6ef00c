"""Register tiles of one token and of TILE tokens, against sums written out in NumPy."""

from typing import Any

import numba
import numpy as np
import pytest

from glmcpu.simd.tile import (
    OFFSET,
    TILE,
    tile_dot_bytes,
    tile_dot_nibbles,
    tile_fma,
    tile_offsets,
    tile_scaled,
    tile_store,
    tile_sums,
    tile_total,
    zeros,
)
from glmcpu.simd.vector import bits, high_nibbles, join, load, load_bytes, low_nibbles, splat

F32 = np.float32
SIZES = sorted({1, TILE})
STRIDE = 40


def _kernels(n: int) -> tuple[Any, Any, Any, Any]:
    @numba.njit
    def products(out, w, x, lanes):
        acc = zeros(n)
        for i in range(w.size // 16):
            acc = tile_fma(acc, load(w, 16 * i), x, i, STRIDE)
        tile_store(out, 3, STRIDE, acc, load(w, 0), load(w, 16), lanes)

    @numba.njit
    def byte_dot(out, w, x, offsets):
        ints = tile_offsets(zeros(n), offsets, 0, 1)
        ints = tile_dot_bytes(ints, load_bytes(w, 0), x, 1, STRIDE)
        acc = tile_scaled(zeros(n), ints, splat(F32(1)), np.ones(1, F32), 0, 0)
        tile_store(out, 0, 16, acc, splat(F32(1)), splat(F32(0)), 16)

    @numba.njit
    def nibble_dot(out, w, x, high):
        ints = tile_offsets(zeros(n), np.full(1, 3, np.int32), 0, 0)
        both, sums = load_bytes(w, 0), tile_sums(ints)
        for _ in range(8):
            sums = tile_dot_nibbles(sums, high_nibbles(both) if high else low_nibbles(both), x, 1, STRIDE)
        ints = tile_total(sums, ints)
        acc = tile_scaled(zeros(n), ints, splat(F32(1)), np.ones(1, F32), 0, 0)
        tile_store(out, 0, 16, acc, splat(F32(1)), splat(F32(0)), 16)

    @numba.njit
    def scaled(out, whole, w, x):
        ints = tile_offsets(zeros(n), whole, 2, 3)
        acc = tile_scaled(zeros(n), ints, load(w, 0), x, 1, STRIDE)
        acc = tile_scaled(acc, ints, load(w, 16), x, 2, STRIDE)
        tile_store(out, 0, 16, acc, splat(F32(1)), splat(F32(0)), 16)

    return products, byte_dot, nibble_dot, scaled


KERNELS = {n: _kernels(n) for n in SIZES}


@pytest.mark.parametrize("lanes", [0, 1, 9, 15, 16])
@pytest.mark.parametrize("n", SIZES)
def test_products_are_scaled_shifted_and_stored_in_their_lanes_only(n: int, lanes: int) -> None:
    rng = np.random.default_rng(n)
    # Whole numbers: every sum is exact, so any mistake shows.
    w, x = rng.integers(-9, 9, (7, 16)).astype(F32), rng.integers(-9, 9, (n, STRIDE)).astype(F32)
    out = np.full((n, STRIDE), 1e9, F32)
    KERNELS[n][0](out.reshape(-1), w.reshape(-1), x.reshape(-1), lanes)
    expected = np.full((n, STRIDE), 1e9, F32)
    expected[:, 3 : 3 + lanes] = ((x[:, :7] @ w) * w[0] + w[1])[:, :lanes]
    assert np.array_equal(out, expected)


@pytest.mark.parametrize("values", ["random", "lowest", "highest"])
@pytest.mark.parametrize("n", SIZES)
def test_byte_dots_are_exact_at_the_ends_of_their_range(n: int, values: str) -> None:
    rng = np.random.default_rng(n)
    bounds = {"random": (-128, 127), "lowest": (-128, -128), "highest": (127, 127)}[values]
    w = rng.integers(bounds[0], bounds[1] + 1, (16, 4)).astype(np.int8)
    for sign in (-127, 127, 0):
        x = np.full((n, STRIDE), sign, np.int8) if sign else rng.integers(-127, 128, (n, STRIDE)).astype(np.int8)
        four, out = x[:, 1:5].astype(np.int32), np.empty((n, 16), F32)
        KERNELS[n][1](out.reshape(-1), w.reshape(-1), x.reshape(-1), -OFFSET * four.sum(axis=1, dtype=np.int32))
        assert np.array_equal(out, four @ w.astype(np.int32).T)


@pytest.mark.parametrize("high", [False, True])
@pytest.mark.parametrize("n", SIZES)
def test_nibble_dots_take_one_half_of_each_byte(n: int, high: bool) -> None:
    rng = np.random.default_rng(n)
    for w in (rng.integers(0, 256, (16, 4)).astype(np.uint8), np.full((16, 4), 255, np.uint8)):
        x = rng.choice([-127, -1, 0, 5, 127], (n, STRIDE)).astype(np.int8)
        nibbles = (w >> 4 if high else w & 15).astype(np.int32)
        out = np.empty((n, 16), F32)
        KERNELS[n][2](out.reshape(-1), w.reshape(-1), x.reshape(-1), high)
        assert np.array_equal(out, 8 * (x[:, 1:5].astype(np.int32) @ nibbles.T) + 3)


@pytest.mark.parametrize("n", SIZES)
def test_whole_numbers_are_scaled_and_added(n: int) -> None:
    rng = np.random.default_rng(n)
    whole, w = rng.integers(-9999, 9999, 64).astype(np.int32), rng.integers(-9, 9, (2, 16)).astype(F32)
    x, out = rng.integers(-9, 9, (n, STRIDE)).astype(F32), np.empty((n, 16), F32)
    KERNELS[n][3](out.reshape(-1), whole, w.reshape(-1), x.reshape(-1))
    ints = whole[2 : 2 + 3 * n : 3, None]
    assert np.array_equal(out, ints * (w[0] * x[:, 1:2]) + ints * (w[1] * x[:, 2:3]))


@pytest.mark.parametrize(("shift", "mask"), [(0, 7), (3, 7), (5, 7), (6, 3), (4, 15), (2, 63), (0, 1)])
def test_bits_are_those_of_each_byte_alone_and_join_adds_others(shift: int, mask: int) -> None:
    @numba.njit
    def picked(out, a, b, x):
        ints = tile_offsets(zeros(1), np.zeros(1, np.int32), 0, 0)
        both = join(bits(load_bytes(a, 0), shift, mask), bits(load_bytes(b, 0), 1, 64))
        total = tile_total(tile_dot_nibbles(tile_sums(ints), both, x, 0, 0), ints)
        acc = tile_scaled(zeros(1), total, splat(F32(1)), np.ones(1, F32), 0, 0)
        tile_store(out, 0, 16, acc, splat(F32(1)), splat(F32(0)), 16)

    rng, out = np.random.default_rng(shift), np.empty(16, F32)
    a, b = rng.integers(0, 256, (2, 16, 4)).astype(np.uint8)
    for i, x in enumerate(np.eye(4, dtype=np.int8)):
        picked(out, a.reshape(-1), b.reshape(-1), x)
        assert np.array_equal(out, ((a >> shift) & mask | (b >> 1) & 64)[:, i])
