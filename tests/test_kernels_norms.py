"""Layer norm against its definition, and token by token."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from running import ran

from glmcpu.backends import reference
from glmcpu.kernels.norms import layer_norm

F32 = np.float32
EPSILON = 1e-5
OnThreads = Callable[[Callable[[], Any]], Any]


def _inputs(T: int, C: int) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(T * 10_000 + C)
    x = (rng.normal(size=(T, C)) * 3 + 1).astype(F32)
    return x, rng.normal(size=C).astype(F32), rng.normal(size=C).astype(F32)


@pytest.mark.parametrize("C", [1, 8, 15, 16, 17, 64, 100, 4096])
@pytest.mark.parametrize("T", [1, 2, 3, 19])
def test_norm_is_the_definition(T: int, C: int, on_threads: OnThreads) -> None:
    x, scale, shift = _inputs(T, C)
    out = on_threads(lambda: ran(layer_norm, x, scale, shift, EPSILON))
    expected = reference.Backend().layer_norm(x, scale, shift, EPSILON)
    np.testing.assert_allclose(out, expected, rtol=0, atol=2e-5)


def test_a_token_alone_has_the_bits_it_has_among_others() -> None:
    x, scale, shift = _inputs(7, 100)
    out = ran(layer_norm, x, scale, shift, EPSILON)
    for t in range(7):
        assert ran(layer_norm, x[t : t + 1].copy(), scale, shift, EPSILON).tobytes() == out[t].tobytes()


def test_a_constant_row_becomes_the_shift() -> None:
    _, scale, shift = _inputs(1, 33)
    for value in (0, 1e-45, 7):
        assert np.array_equal(ran(layer_norm, np.full((1, 33), value, F32), scale, shift, EPSILON)[0], shift)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_stay_in_their_row(bad: float) -> None:
    x, scale, shift = _inputs(3, 40)
    clean = ran(layer_norm, x, scale, shift, EPSILON)
    x[1, 39] = bad
    out = ran(layer_norm, x, scale, shift, EPSILON)
    assert np.isnan(out[1]).all()
    assert np.array_equal(out[[0, 2]], clean[[0, 2]])


def test_a_large_mean_does_not_hide_the_variance() -> None:
    x, scale, shift = _inputs(2, 512)
    exact = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + EPSILON) * scale + shift
    np.testing.assert_allclose(ran(layer_norm, x + F32(4096), scale, shift, EPSILON), exact, atol=2e-3)
