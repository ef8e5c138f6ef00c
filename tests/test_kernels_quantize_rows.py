"""Activations to int8, to the bit, and what becomes of values that are no numbers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from running import quantized_by_token

from glmcpu.kernels.quantize_rows import GROUP

F32 = np.float32
OnThreads = Callable[[Callable[[], Any]], Any]


def _definition(x: NDArray[np.float32], factor: int) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.int32]]:
    groups = np.pad(x, ((0, 0), (0, -x.shape[1] % GROUP))).reshape(len(x), -1, GROUP)
    largest = np.abs(groups).max(axis=2, keepdims=True)
    inverse = np.where(largest > F32(1e-30), F32(127) / largest, F32(0)).astype(F32)
    codes = np.rint(groups * inverse)
    scales = (largest * F32(1 / 127))[:, :, 0]
    return codes.astype(np.int8).reshape(len(x), -1), scales, factor * codes.sum(axis=2).astype(np.int32)


@pytest.mark.parametrize("factor", [-8, 0])
@pytest.mark.parametrize("I", [1, 15, 16, 17, 31, 32, 33, 64, 100, 4096])
@pytest.mark.parametrize("T", [1, 2, 19])
def test_codes_scales_and_offsets_are_the_definition_to_the_bit(
    T: int, I: int, factor: int, on_threads: OnThreads
) -> None:
    rng = np.random.default_rng(T + I)
    x = (rng.normal(size=(T, I)) * 10.0 ** rng.uniform(-6, 6, (T, 1))).astype(F32)
    for found, expected in zip(on_threads(lambda: quantized_by_token(x, factor)), _definition(x, factor), strict=True):
        assert found.dtype == expected.dtype
        assert np.array_equal(found, expected)


def test_the_error_is_at_most_half_a_step_and_the_largest_value_is_127() -> None:
    x = np.random.default_rng(3).normal(size=(5, 96)).astype(F32)
    codes, scales, _ = quantized_by_token(x)
    steps = np.repeat(scales, GROUP, axis=1)
    assert (np.abs(codes * steps - x) <= steps * 0.5001).all()
    assert set(np.abs(codes.reshape(5, 3, GROUP)).max(axis=2).reshape(-1)) == {127}


def test_a_row_alone_has_the_bits_it_has_among_others() -> None:
    x = np.random.default_rng(4).normal(size=(40, 1000)).astype(F32)
    together = quantized_by_token(x)
    for t in (0, 19, 39):
        for alone, all_rows in zip(quantized_by_token(x[t : t + 1].copy()), together, strict=True):
            assert alone.tobytes() == all_rows[t].tobytes()


@pytest.mark.parametrize("value", [0, -0.0, 1e-45, 1e-38])
def test_zeros_and_what_is_next_to_zero_have_codes_zero(value: float) -> None:
    codes, scales, sums = quantized_by_token(np.full((2, 40), value, F32))
    assert not codes.any()
    assert not sums.any()
    assert np.isfinite(scales).all()


def test_the_largest_numbers_do_not_overflow() -> None:
    codes, scales, sums = quantized_by_token(np.full((1, 32), -3.4028235e38, F32))
    assert set(codes.reshape(-1)) == {-127}
    assert np.isfinite(scales).all()
    assert sums[0, 0] == -127 * 32


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_group_with_nan_or_infinity_says_so_in_its_scale_alone(bad: float) -> None:
    x = np.random.default_rng(5).normal(size=(2, 96)).astype(F32)
    clean = quantized_by_token(x)
    x[0, 40] = bad
    codes, scales, sums = quantized_by_token(x)
    assert not np.isfinite(scales[0, 1])
    assert sums[0, 1] == codes[0, 32:64].sum()
    keep = np.array([[True, False, True], [True] * 3])
    assert np.array_equal(scales[keep], clean[1][keep])
    assert np.array_equal(codes.reshape(2, 3, 32)[keep], clean[0].reshape(2, 3, 32)[keep])
