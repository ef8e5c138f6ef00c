"""Heads out of the fused projection and their rotation, against the reference."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from running import ran

from glmcpu.backends import reference
from glmcpu.kernels.rotary import split_rotate

F32 = np.float32
OnThreads = Callable[[Callable[[], Any]], Any]


def _inputs(T: int, H: int, D: int) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(T + H + D)
    angles = rng.uniform(0, 6, (T, D // 2))
    return rng.normal(size=(T, H * 3 * D)).astype(F32), np.cos(angles).astype(F32), np.sin(angles).astype(F32)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("D", [8, 16, 24, 64, 128])
@pytest.mark.parametrize(("T", "H"), [(1, 1), (2, 3), (19, 4)])
def test_heads_are_split_and_turned_as_in_the_reference(T: int, H: int, D: int, parts: int, on_threads: Any) -> None:
    qkv, cos, sin = _inputs(T, H, D)
    out = on_threads(lambda: ran(split_rotate, qkv, cos, sin, H, parts))
    expected = reference.Backend().split_rotate(qkv, cos, sin, H, parts)
    assert out.shape == (3, T, H, -(-D // 16) * 16)
    np.testing.assert_allclose(out[..., :D], expected, atol=1e-6)
    assert not out[..., D:].any()


def test_values_are_not_turned() -> None:
    qkv, cos, sin = _inputs(3, 2, 16)
    assert np.array_equal(ran(split_rotate, qkv, cos, sin, 2, 2)[2], qkv.reshape(3, 2, 3, 16)[:, :, 2])


def test_a_zero_angle_changes_nothing() -> None:
    qkv, cos, sin = _inputs(3, 2, 16)
    out = ran(split_rotate, qkv, np.ones_like(cos), np.zeros_like(sin), 2, 2)
    assert np.array_equal(out, qkv.reshape(3, 2, 3, 16).transpose(2, 0, 1, 3))


def test_a_token_alone_has_the_bits_it_has_among_others(on_threads: OnThreads) -> None:
    qkv, cos, sin = _inputs(7, 2, 24)
    out = ran(split_rotate, qkv, cos, sin, 2, 2)
    for t in range(7):
        here = slice(t, t + 1)
        alone = on_threads(
            lambda here=here: ran(split_rotate, qkv[here].copy(), cos[here].copy(), sin[here].copy(), 2, 2)
        )
        assert alone.tobytes() == out[:, here].tobytes()


def test_nan_stays_in_its_head_and_pair() -> None:
    qkv, cos, sin = _inputs(2, 2, 16)
    qkv.reshape(2, 2, 3, 16)[1, 0, 0, 1] = np.nan
    wrong = np.argwhere(np.isnan(ran(split_rotate, qkv, cos, sin, 2, 2)))
    assert wrong.tolist() == [[0, 1, 0, 1], [0, 1, 0, 5]]
