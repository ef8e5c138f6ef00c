"""Every word against NumPy: over whole ranges where that is possible, at ties and edges where it is not."""

import ctypes
import mmap
import sys
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest
from numpy.typing import NDArray

from glmcpu.simd import isa
from glmcpu.simd.vector import (
    absolute,
    add,
    div,
    exp,
    first,
    fma,
    load,
    load_part,
    maximum,
    mul,
    reduce_add,
    reduce_max,
    round_within,
    scatter,
    splat,
    store,
    store_codes,
    store_part,
    sub,
)

F32 = np.float32
SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-40, 3.4028235e38], F32)


def _lanewise(word: Any, arity: int) -> Callable[..., NDArray[np.float32]]:
    """The word over whole arrays, whose size is a multiple of 16."""

    @numba.njit
    def one(out, a):
        for i in range(0, a.size, 16):
            store(out, i, word(load(a, i)))

    @numba.njit
    def two(out, a, b):
        for i in range(0, a.size, 16):
            store(out, i, word(load(a, i), load(b, i)))

    @numba.njit
    def three(out, a, b, c):
        for i in range(0, a.size, 16):
            store(out, i, word(load(a, i), load(b, i), load(c, i)))

    def run(*arrays: NDArray[np.float32]) -> NDArray[np.float32]:
        out = np.empty_like(arrays[0])
        (one, two, three)[arity - 1](out, *arrays)
        return out

    return run


@numba.njit
def _load_part(out, x, i, n):
    store(out, 0, load_part(x, i, n))


@numba.njit
def _store_part(out, i, x, n):
    store_part(out, i, load(x, 0), n)


@numba.njit
def _scatter(out, i, stride, x):
    scatter(out, i, stride, load(x, 0))


@numba.njit
def _store_codes(out, i, x):
    return store_codes(out, i, load(x, 0))


@numba.njit
def _reduce(x):
    return reduce_add(load(x, 0)), reduce_max(load(x, 0))


@numba.njit
def _first(out, n, x, other):
    store(out, 0, first(n, load(x, 0), other))


@numba.njit
def _round_within(out, x, low, high):
    for i in range(0, x.size, 16):
        store(out, i, round_within(load(x, i), low, high))


@numba.njit
def _splat(out, x):
    store(out, 0, splat(x))


def _all_pairs() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    values = np.concatenate([SPECIAL, np.random.default_rng(0).normal(size=24).astype(F32)])
    a, b = np.meshgrid(values, values)
    return a.reshape(-1).copy(), b.reshape(-1).copy()


def _to_half(x: NDArray[np.float32]) -> NDArray[np.uint16]:
    with np.errstate(over="ignore", under="ignore"):
        return x.astype(np.float16).view(np.uint16)


def _same_floats(a: NDArray[np.float32], b: NDArray[np.float32]) -> None:
    """Equal bits, the sign of zero included; any NaN equals any other."""
    assert np.array_equal(np.isnan(a), np.isnan(b))
    assert np.array_equal(np.where(np.isnan(a), 0, a).view(np.uint32), np.where(np.isnan(b), 0, b).view(np.uint32))


@pytest.mark.parametrize(
    ("word", "definition"),
    [(add, np.add), (sub, np.subtract), (mul, np.multiply), (div, np.divide)],
    ids=["add", "sub", "mul", "div"],
)
def test_arithmetic_is_that_of_numpy_to_the_bit(word: Any, definition: Any) -> None:
    a, b = _all_pairs()
    with np.errstate(all="ignore"):
        _same_floats(_lanewise(word, 2)(a, b), definition(a, b))


def test_maximum_is_nan_if_either_is() -> None:
    a, b = _all_pairs()
    found = _lanewise(maximum, 2)(a, b)
    assert np.array_equal(found, np.maximum(a, b), equal_nan=True)


def test_absolute_clears_the_sign_of_zero_too() -> None:
    a, _ = _all_pairs()
    _same_floats(_lanewise(absolute, 1)(a), np.abs(a))


@pytest.mark.skipif(isa.name == "portable", reason="without the instruction it rounds twice")
def test_fma_rounds_once() -> None:
    a = (1 + np.arange(1, 65) * 2.0**-20).astype(F32)
    product = a * a
    residue = a.astype(np.float64) ** 2 - product
    assert np.any(residue)
    assert np.array_equal(_lanewise(fma, 3)(a, a, -product), residue.astype(F32))


def test_exp_is_within_two_units_in_the_last_place() -> None:
    x = np.linspace(-87.33, 88.72, 1 << 20, dtype=F32)
    exact = np.exp(x.astype(np.float64))
    error = np.abs(_lanewise(exp, 1)(x) - exact) / np.spacing(exact.astype(F32))
    assert error.max() < 2


def test_exp_beyond_its_range_is_zero_or_infinite_and_nan_stays_nan() -> None:
    x = np.array([-87.337, -88, -104, -1e30, -np.inf, 88.7229, 89, 1e30, np.inf, np.nan, 0, -0.0, 1e-45, 0, 0, 0], F32)
    expected = np.array([0] * 5 + [np.inf] * 4 + [np.nan] + [1] * 6, F32)
    _same_floats(_lanewise(exp, 1)(x), expected)


@pytest.mark.parametrize("n", [-3, 0, 1, 7, 15, 16, 20])
def test_load_part_fills_the_lanes_from_n_on_with_zero(n: int) -> None:
    x, out = np.arange(1, 41, dtype=F32), np.full(16, 9, F32)
    _load_part(out, x, 3, n)
    assert np.array_equal(out, np.where(np.arange(16) < n, x[3:19], 0))


@pytest.mark.parametrize("n", [-3, 0, 1, 7, 15, 16, 20])
def test_store_part_touches_nothing_beyond_n(n: int) -> None:
    x, out = np.arange(1, 17, dtype=F32), np.full(40, -1, F32)
    _store_part(out, 3, x, n)
    expected = np.full(40, -1, F32)
    expected[3 : 3 + min(max(n, 0), 16)] = x[: max(n, 0)]
    assert np.array_equal(out, expected)


@pytest.mark.skipif(sys.platform != "linux", reason="mprotect is called as Linux has it")
def test_parts_at_the_last_bytes_of_a_page_do_not_reach_the_next() -> None:
    page = mmap.PAGESIZE
    pages = mmap.mmap(-1, 2 * page)
    memory = np.frombuffer(pages, F32)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(memory.ctypes.data + page), ctypes.c_size_t(page), 0) == 0
    x, out = np.arange(1, 17, dtype=F32), np.empty(16, F32)
    for n in range(1, 17):
        _store_part(memory, page // 4 - n, x, n)
        _load_part(out, memory, page // 4 - n, n)
        assert np.array_equal(out, np.where(np.arange(16) < n, x, 0))


@pytest.mark.parametrize("stride", [1, 3, 16])
@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
def test_scatter_writes_its_sixteen_elements_only(stride: int, dtype: type[np.generic]) -> None:
    x = (np.arange(16) / 3).astype(F32)
    out = np.full(260, 77, dtype)
    expected = out.copy()
    expected[5 : 5 + 16 * stride : stride] = x if dtype == np.float32 else _to_half(x)
    _scatter(out, 5, stride, x)
    assert np.array_equal(out, expected)


def test_codes_round_to_even_wrap_around_and_take_infinity_and_nan_for_zero() -> None:
    x = np.array(
        [0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.4, 127.5, 1e6, np.inf, -128.5, -129, -np.inf, np.nan, 3, -3], F32
    )
    out = np.full(48, 55, np.int8)
    total = _store_codes(out, 16, x)
    expected = [0, 2, 2, 0, -2, 126, 127, -128, 64, 0, -128, 127, 0, 0, 3, -3]
    assert out[16:32].tolist() == expected
    assert total == sum(expected)
    assert set(out[:16].tolist() + out[32:].tolist()) == {55}


def test_round_within_rounds_to_even_and_holds_to_its_bounds() -> None:
    x = np.concatenate([np.arange(-12, 12, 0.25), [np.inf, -np.inf], np.zeros(14)]).astype(F32)
    out = np.empty_like(x)
    _round_within(out, x, F32(-8), F32(7))
    assert np.array_equal(out, np.clip(np.rint(x), -8, 7))


def test_sums_go_by_halves() -> None:
    x = (np.random.default_rng(2).normal(size=16) * 10.0 ** np.arange(-8, 8)).astype(F32)
    v = x
    while v.size > 1:
        v = v[: v.size // 2] + v[v.size // 2 :]
    assert F32(_reduce(x)[0]).tobytes() == v.tobytes()


@pytest.mark.parametrize("lane", range(16))
def test_the_largest_lane_is_found_and_nan_wins(lane: int) -> None:
    x = np.full(16, -np.inf, F32)
    x[lane] = -5
    assert _reduce(x)[1] == -5
    x[lane] = np.nan
    assert np.isnan(_reduce(x)[1])


@pytest.mark.parametrize("n", [-2, 0, 1, 15, 16, 99])
def test_first_keeps_n_lanes(n: int) -> None:
    x, out = np.arange(16, dtype=F32), np.empty(16, F32)
    _first(out, n, x, F32(-np.inf))
    assert np.array_equal(out, np.where(np.arange(16) < n, x, -np.inf))


def test_splat_fills_all_lanes() -> None:
    out = np.zeros(16, F32)
    _splat(out, F32(-2.5))
    assert set(out.tolist()) == {-2.5}
