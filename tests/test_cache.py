"""The KV cache: its layout, its size, and what is in it."""

import numpy as np
import pytest
from numpy.typing import NDArray

from glmcpu.cache import KVCache, bytes_for
from glmcpu.errors import MachineError
from glmcpu.kernels.attention import append

F32 = np.float32


def _heads(n: int, H: int, D: int) -> NDArray[np.float32]:
    """n positions of values float16 holds exactly, each different from all others nearby."""
    return np.random.default_rng(n).normal(size=(n, H, D)).astype(np.float16).astype(F32)


@pytest.mark.parametrize(("capacity", "D"), [(1, 8), (16, 16), (17, 24), (2048, 128)])
def test_the_layout_is_the_documented_one_and_empty(capacity: int, D: int) -> None:
    L, H = 2, 3
    S, P = -(-capacity // 16) * 16, -(-D // 16) * 16
    cache = KVCache(L, H, D, capacity, np.uint16)
    assert cache.keys.shape == (L, H, S // 16, P, 16)
    assert cache.values.shape == (L, H, S, P)
    assert (cache.length, cache.capacity) == (0, capacity)
    assert cache.keys.nbytes + cache.values.nbytes == bytes_for(L, H, D, capacity, np.uint16)
    assert all(a.shape == (0, H, D) for a in cache.plain(0))


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
@pytest.mark.parametrize("D", [8, 16, 24])
def test_what_was_appended_reads_back_plain(D: int, dtype: type[np.generic]) -> None:
    k, v = _heads(37, 2, D), _heads(38, 2, D)[1:]
    cache = KVCache(2, 2, D, 40, dtype)
    fill = ((0, 0), (0, 0), (0, -D % 16))
    append(cache.keys[1], cache.values[1], np.pad(k, fill), np.pad(v, fill), 0)
    for length in (0, 1, 16, 37):
        cache.length = length
        keys, values = cache.plain(1)
        assert keys.dtype == values.dtype == F32
        assert np.array_equal(keys, k[:length])
        assert np.array_equal(values, v[:length])
    assert not any(a.any() for a in cache.plain(0))


def test_a_full_size_cache_takes_half_a_megabyte_for_each_position() -> None:
    assert bytes_for(28, 32, 128, 2048, np.uint16) == 2048 * 28 * 2 * 4096 * 2


def test_no_memory_is_said_in_one_sentence() -> None:
    with pytest.raises(MachineError, match="no memory for the KV cache"):
        KVCache(28, 32, 128, 1 << 40, np.uint16)
