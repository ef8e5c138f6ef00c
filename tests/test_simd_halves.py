"""Half precision: every one of its 65,536 values, every tie between two of them, and any float32 beside."""

import numba
import numpy as np
from numpy.typing import NDArray

from glmcpu.simd.vector import as_half, float_of_half, half_bits, load, store

F32 = np.float32


@numba.njit
def _copy(out, x):
    for i in range(0, x.size, 16):
        store(out, i, load(x, i))


@numba.njit
def _as_half(out, x):
    for i in range(0, x.size, 16):
        store(out, i, as_half(load(x, i)))


@numba.njit
def _halves(bits, floats, x, h):
    for i in range(x.size):
        bits[i] = half_bits(x[i])
        floats[i] = float_of_half(h[i])


def _to_half(x: NDArray[np.float32]) -> NDArray[np.uint16]:
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return x.astype(np.float16).view(np.uint16)


def _to_float(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    with np.errstate(invalid="ignore"):  # arm64 reports signalling NaN
        return bits.view(np.float16).astype(F32)


def _floats_around_every_half() -> NDArray[np.float32]:
    """Every finite float16, the midpoint to the next (a tie), and the float32 on each side of that midpoint."""
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(F32)
    ties = np.append((halves[:-1] + halves[1:]) / 2, F32(65520)).astype(F32)
    special = np.array([0.0, np.inf, np.nan, 1e-45, 1e-40, 3.4028235e38] + [0.0] * 26, F32)
    around = [halves, ties, np.nextafter(ties, F32(0)), np.nextafter(ties, F32(np.inf))]
    positive = np.concatenate([*around, special])
    return np.concatenate([positive, -positive])


def _same_floats(a: NDArray[np.float32], b: NDArray[np.float32]) -> None:
    """Equal bits, the sign of zero included; any NaN equals any other."""
    assert np.array_equal(np.isnan(a), np.isnan(b))
    assert np.array_equal(np.where(np.isnan(a), 0, a).view(np.uint32), np.where(np.isnan(b), 0, b).view(np.uint32))


def _same_halves(bits: NDArray[np.uint16], expected: NDArray[np.uint16]) -> None:
    nan = np.isnan(expected.view(np.float16))
    assert np.array_equal(np.isnan(bits.view(np.float16)), nan)
    assert np.array_equal(bits[~nan], expected[~nan])


def test_every_half_is_read_exactly() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    out = np.empty(bits.size, F32)
    _copy(out, bits)
    _same_floats(out, _to_float(bits))


def test_halves_are_written_to_nearest_even() -> None:
    x = _floats_around_every_half()
    out = np.empty(x.size, np.uint16)
    _copy(out, x)
    _same_halves(out, _to_half(x))


def test_any_bit_pattern_is_written_as_the_nearest_half() -> None:
    x = np.random.default_rng(1).integers(0, 1 << 32, 1 << 18, dtype=np.uint32).view(F32)
    out = np.empty(x.size, np.uint16)
    _copy(out, x)
    _same_halves(out, _to_half(x))


def test_as_half_rounds_in_place() -> None:
    x = _floats_around_every_half()
    out = np.empty_like(x)
    _as_half(out, x)
    _same_floats(out, _to_float(_to_half(x)))


def test_single_halves_convert_as_vectors_do() -> None:
    x = _floats_around_every_half()[::7].copy()
    h = np.arange(x.size).astype(np.uint16)
    bits, floats = np.empty(x.size, np.uint16), np.empty(x.size, F32)
    _halves(bits, floats, x, h)
    _same_halves(bits, _to_half(x))
    _same_floats(floats, _to_float(h))
