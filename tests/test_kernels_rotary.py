"""A head turned by its positions, against the reference."""

from typing import Any

import numpy as np
import pytest

from glmcpu.backends.reference import split_rotate
from glmcpu.kernels.rotary import rotate

F32 = np.float32


def _inputs(T: int, H: int, D: int) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(T + H + D)
    angles = rng.uniform(0, 6, (T, D // 2))
    return rng.normal(size=(T, H * 3 * D)).astype(F32), np.cos(angles).astype(F32), np.sin(angles).astype(F32)


def _turned(qkv: Any, cos: Any, sin: Any, H: int, parts: int) -> Any:
    """Queries and keys, head by head: (2, T, H, D)."""
    T, D = len(qkv), cos.shape[1] * 2
    out = np.full((2, T, H, D + 3), 7, F32)
    for t in range(T):
        for h in range(H):
            for which in range(2):
                at = ((t * H + h) * 3 + which) * D
                rotate(out[which, t, h], qkv.reshape(-1), at, cos.reshape(-1), sin.reshape(-1), t * D // 2, D, parts)
    assert set(out[..., D:].reshape(-1)) == {7}
    return out[..., :D]


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("D", [8, 16, 24, 64, 128])
@pytest.mark.parametrize(("T", "H"), [(1, 1), (2, 3)])
def test_heads_are_turned_as_in_the_reference(T: int, H: int, D: int, parts: int) -> None:
    qkv, cos, sin = _inputs(T, H, D)
    expected = split_rotate(qkv, cos, sin, H, parts)
    np.testing.assert_allclose(_turned(qkv, cos, sin, H, parts), expected[:2], atol=1e-6)


def test_a_zero_angle_changes_nothing() -> None:
    qkv, cos, sin = _inputs(3, 2, 16)
    out = _turned(qkv, np.ones_like(cos), np.zeros_like(sin), 2, 2)
    assert np.array_equal(out, qkv.reshape(3, 2, 3, 16).transpose(2, 0, 1, 3)[:2])


def test_nan_stays_in_its_pair() -> None:
    qkv, cos, sin = _inputs(2, 2, 16)
    qkv.reshape(2, 2, 3, 16)[1, 0, 0, 1] = np.nan
    wrong = np.argwhere(np.isnan(_turned(qkv, cos, sin, 2, 2)))
    assert wrong.tolist() == [[0, 1, 0, 1], [0, 1, 0, 5]]
