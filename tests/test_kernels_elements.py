"""Halves as float32, and the largest magnitude, against NumPy."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from glmcpu.kernels.elements import largest_magnitude, widen

OnThreads = Callable[[Callable[[], Any]], Any]


@pytest.mark.parametrize("n", [1, 15, 16, 17, 33, 40_000])
def test_widen_is_the_value_of_every_half(n: int, on_threads: OnThreads) -> None:
    halves = np.resize(np.arange(65536, dtype=np.uint32), n * 5)[::5].astype(np.uint16)

    def compute() -> np.ndarray:
        out = np.full(n + 3, 7, np.float32)
        widen(out[:n], halves)
        assert (out[n:] == 7).all()
        return out

    np.testing.assert_array_equal(on_threads(compute)[:n], halves.view(np.float16).astype(np.float32))


@pytest.mark.parametrize("shape", [(1,), (16,), (3, 5), (17, 1000), (2, 20_001)])
def test_largest_magnitude_is_that_of_numpy(shape: tuple[int, ...], on_threads: OnThreads) -> None:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    x.flat[-1] = -9
    assert on_threads(lambda: np.array(largest_magnitude(x))) == 9
    x.flat[0] = np.inf
    assert largest_magnitude(x) == np.inf
    x.flat[x.size // 2] = np.nan
    assert np.isnan(largest_magnitude(x))


def test_largest_magnitude_of_nothing_and_of_zeros_is_zero() -> None:
    assert largest_magnitude(np.empty((0, 4), np.float32)) == 0
    assert largest_magnitude(np.full(50, -0.0, np.float32)) == 0
