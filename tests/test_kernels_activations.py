"""GELU and the scaled residual, in place, against float64."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from running import ran

from glmcpu.backends import reference
from glmcpu.kernels.activations import gelu, scale_add

F32 = np.float32
OnThreads = Callable[[Callable[[], Any]], Any]
# Below and above the size from which several threads share the work, and on no multiple of 16.
SHAPES = [(1, 1), (1, 15), (1, 16), (3, 17), (19, 64), (1, 1 << 16), (19, 4099)]


def _exact_gelu(x: NDArray[np.float32]) -> NDArray[np.float64]:
    v = x.astype(np.float64)
    return 0.5 * v * (1 + np.tanh(np.sqrt(2 / np.pi) * (v + 0.044715 * v**3)))


@pytest.mark.parametrize("shape", SHAPES)
def test_gelu_is_the_definition(shape: tuple[int, int], on_threads: OnThreads) -> None:
    x = (np.random.default_rng(0).normal(size=shape) * 4).astype(F32)
    out = on_threads(lambda: ran(gelu, x.copy()))
    np.testing.assert_allclose(out, _exact_gelu(x), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out, reference.Backend().gelu(x), rtol=1e-5, atol=2e-6)


def test_gelu_works_in_place() -> None:
    x = np.ones((2, 5), F32)
    assert ran(gelu, x) is x
    assert x[0, 0] == pytest.approx(0.8411920)


def test_gelu_at_its_ends_is_zero_x_or_nan() -> None:
    x = np.array([[-1e30, -200, -20, 0, 1e-45, 20, 1e30, np.inf, np.nan]], F32)
    out = ran(gelu, x.copy())[0]
    assert np.array_equal(out[:4], np.zeros(4))
    assert np.array_equal(out[5:8], x[0, 5:8])
    assert out[4] in (0, F32(1e-45))
    assert np.isnan(out[8])


def test_gelu_of_one_value_does_not_depend_on_its_neighbours() -> None:
    x = np.random.default_rng(1).normal(size=(1, 50)).astype(F32)
    out = ran(gelu, x.copy())
    assert all(ran(gelu, x[:, i : i + 1].copy())[0, 0] == out[0, i] for i in range(50))


@pytest.mark.parametrize("shape", SHAPES)
def test_scale_add_is_the_definition(shape: tuple[int, int], on_threads: OnThreads) -> None:
    rng = np.random.default_rng(2)
    h, y = (rng.normal(size=shape).astype(F32) for _ in range(2))
    alpha = float(F32(np.sqrt(56)))
    out = on_threads(lambda: ran(scale_add, h, alpha, y.copy()))
    np.testing.assert_allclose(out, alpha * h.astype(np.float64) + y, rtol=2e-7, atol=2e-6)


def test_scale_add_writes_over_its_last_argument_only() -> None:
    h, y = np.full((2, 3), 2, F32), np.ones((2, 3), F32)
    assert ran(scale_add, h, 3.0, y) is y
    assert set(h.reshape(-1)) == {2}
    assert set(y.reshape(-1)) == {7}


def test_scale_add_keeps_nan_and_infinity_where_they_are() -> None:
    h, y = np.zeros((1, 20), F32), np.ones((1, 20), F32)
    h[0, 3], y[0, 18] = np.nan, np.inf
    out = ran(scale_add, h, 2.0, y)[0]
    assert np.isnan(out[3])
    assert out[18] == np.inf
    assert np.isfinite(np.delete(out, [3, 18])).all()
