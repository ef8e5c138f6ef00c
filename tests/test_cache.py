"""The KV cache: its layout, its size, and what is in it."""

import numpy as np
import pytest
from numpy.typing import NDArray
from running import ran

from glmcpu.cache import KINDS, KVCache, bytes_for
from glmcpu.errors import MachineError
from glmcpu.kernels.append import append

F32 = np.float32


def _heads(n: int, H: int, D: int) -> NDArray[np.float32]:
    """n positions of values float16 holds exactly, each different from all others nearby."""
    return np.random.default_rng(n).normal(size=(n, H, D)).astype(np.float16).astype(F32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("capacity", "D"), [(1, 8), (64, 16), (65, 24), (2048, 128)])
def test_the_layout_is_the_documented_one_and_empty(capacity: int, D: int, kind: str) -> None:
    L, H = 2, 3
    B, P = -(-capacity // 128), -(-D // 16) * 16
    cache = KVCache(L, H, D, capacity, kind)
    assert cache.keys.shape == (L, B, H, 8, P, 16)
    assert cache.values.shape == (L, B, H, 128, P)
    assert (cache.length, cache.capacity) == (0, capacity)
    arrays = (cache.keys, cache.values, cache.key_scales, cache.value_scales)
    assert sum(a.nbytes for a in arrays) == bytes_for(L, H, D, capacity, kind)
    assert cache.position_bytes * B * 128 == cache.nbytes == bytes_for(L, H, D, capacity, kind)
    assert all(a.shape == (0, H, D) for a in cache.plain(0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("D", [8, 16, 24])
def test_what_was_appended_reads_back_plain(D: int, kind: str) -> None:
    k, v = _heads(37, 2, D), _heads(38, 2, D)[1:]
    cache = KVCache(2, 2, D, 40, kind)
    qkv, unturned = np.concatenate([k, k, v], axis=2).reshape(37, -1), np.ones((37, D // 2), F32)
    ran(append, cache.layer(1), qkv, unturned, 0 * unturned, np.arange(37), 2, 2)
    for length in (0, 1, 16, 37):
        cache.length = length
        keys, values = cache.plain(1)
        assert keys.dtype == values.dtype == F32
        for found, exact in ((keys, k[:length]), (values, v[:length])):
            half_a_step = np.abs(exact).max(axis=2, keepdims=True) * F32(0.501 / 127)
            assert (np.abs(found - exact) <= (half_a_step if kind == "int8" else 0)).all()
    assert not any(a.any() for a in cache.plain(0))


def test_a_full_size_cache_takes_half_a_megabyte_for_each_position() -> None:
    assert bytes_for(28, 32, 128, 2048, "f16") == 2048 * 28 * 2 * 4096 * 2
    assert bytes_for(28, 32, 128, 2048, "int8") == 2048 * 28 * 2 * (4096 + 32 * 4)


def test_no_memory_is_said_in_one_sentence() -> None:
    with pytest.raises(MachineError, match="no memory for the KV cache"):
        KVCache(28, 32, 128, 1 << 40, "f16")
