"""Attention over float32, float16 and int8 caches against the reference, and query by query."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from running import ran

from glmcpu.backends import Batch, reference
from glmcpu.cache import KINDS, KVCache, Segment
from glmcpu.kernels.append import append
from glmcpu.kernels.attention import attend

F32 = np.float32
# Below, at and beyond a block of 16, of 64 and of 128 positions, a tile and a job of queries.
SIZES = [(1, 0), (1, 15), (1, 16), (2, 40), (8, 0), (9, 7), (19, 14), (33, 100), (1, 300), (40, 260)]
OnThreads = Callable[[Callable[[], Any]], Any]


def _filled_up(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Heads of D channels filled up with zeros to a multiple of 16, as append gives them."""
    return np.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % 16)))


def _qkv(t: int, H: int, D: int, before: int) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """q of t tokens; k and v of `before` older ones and these, all values that float16 holds exactly."""
    rng = np.random.default_rng(t + 100 * H + 1000 * D + before)
    k, v = (rng.normal(size=(before + t, H, D)).astype(np.float16).astype(F32) for _ in range(2))
    return rng.normal(size=(t, H, D)).astype(F32), k, v


def _cache(k: NDArray[np.float32], v: NDArray[np.float32], kept: str, pieces: int = 2) -> KVCache:
    """A cache longer than needed, filled in several appends."""
    cache = KVCache(1, k.shape[1], k.shape[2], len(k) + 5, kept)
    for k_piece, v_piece in zip(np.array_split(k, pieces), np.array_split(v, pieces), strict=True):
        places = np.arange(cache.length, cache.length + len(k_piece))
        qkv = np.concatenate([k_piece, k_piece, v_piece], axis=2).reshape(len(k_piece), 3 * k[0].size)
        unturned = np.ones((len(k_piece), k.shape[2] // 2), F32)
        ran(append, cache.layer(0), qkv, unturned, 0 * unturned, places, k.shape[1], 2)
        cache.length += len(k_piece)
    return cache


def _attend(q: NDArray[np.float32], cache: KVCache, visible: NDArray[np.int64]) -> NDArray[np.float32]:
    out = np.full((q.shape[0], q.shape[1] * q.shape[2]), np.nan, F32)
    ran(attend, out, _filled_up(q), cache.layer(0), visible)
    return out


def _reference(
    q: NDArray[np.float32], k: NDArray[np.float32], v: NDArray[np.float32], visible: NDArray[np.int64]
) -> NDArray[np.float32]:
    """All k and v are appended behind nothing, by the reference's own attention over a padded q."""
    t, (S, H, D) = len(q), k.shape
    qkv = np.concatenate([np.concatenate([np.zeros((S - t, H, D), F32), q]), k, v], axis=2).reshape(S, -1)
    seen = np.concatenate([np.ones(S - t, np.int64), visible])
    segment = Segment(0, S, np.arange(S), seen, KVCache(1, H, D, S, "f32"))
    unturned = np.ones((S, D // 2), F32)
    batch = Batch(unturned, 0 * unturned, [segment])
    return reference.Backend().attend(qkv, 0, batch, H, 2)[S - t :]


def _visible(kind: str, t: int, before: int) -> NDArray[np.int64]:
    if kind == "all":
        return np.full(t, before + t)
    if kind == "causal":
        return np.arange(before + 1, before + t + 1)
    return np.random.default_rng(t).integers(1, before + t + 1, t)


@pytest.mark.parametrize("kept", KINDS)
@pytest.mark.parametrize("D", [8, 16, 24, 64, 128])
@pytest.mark.parametrize(
    ("t", "before"), [(1, 0), (1, 15), (1, 16), (2, 40), (8, 0), (9, 7), (19, 14), (33, 100), (1, 300), (40, 260)]
)
def test_attention_is_the_definition(t: int, before: int, D: int, kept: str, on_threads: OnThreads) -> None:
    q, k, v = _qkv(t, 3, D, before)
    cache = _cache(k, v, kept)
    for kind in ("all", "causal", "any"):
        visible = _visible(kind, t, before)
        out = on_threads(lambda visible=visible: _attend(q, cache, visible))
        np.testing.assert_allclose(out, _reference(q, *cache.plain(0), visible), rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("kept", KINDS)
@pytest.mark.parametrize("kind", ["all", "causal", "any"])
def test_a_query_alone_has_the_bits_it_has_among_others(kind: str, kept: str) -> None:
    q, k, v = _qkv(19, 2, 24, 30)
    cache, visible = _cache(k, v, kept), _visible(kind, 19, 30)
    out = _attend(q, cache, visible)
    for t in range(19):
        assert _attend(q[t : t + 1], cache, visible[t : t + 1]).tobytes() == out[t].tobytes()


@pytest.mark.parametrize("kept", KINDS)
def test_the_cache_does_not_depend_on_how_it_was_filled(kept: str, on_threads: OnThreads) -> None:
    _, k, v = _qkv(37, 3, 24, 0)

    def fill(pieces: int) -> Any:
        cache = _cache(k, v, kept, pieces)
        return cache.layer(0)

    once, one_by_one = on_threads(lambda: fill(1)), fill(37)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(once, one_by_one, strict=True))


def test_a_float16_cache_holds_the_nearest_halves() -> None:
    k, v = np.random.default_rng(0).normal(size=(2, 20, 2, 16)).astype(F32)
    for plain, exact in zip(_cache(k, v, "f16").plain(0), (k, v), strict=True):
        assert np.array_equal(plain, exact.astype(np.float16).astype(F32))


def test_scores_far_apart_do_not_overflow() -> None:
    q, k, v = _qkv(2, 1, 16, 40)
    out = _attend(q * F32(1e4), _cache(k, v, "f32"), np.full(2, 42))
    best = (q[:, 0] @ k[:, 0].T).argmax(axis=1)
    np.testing.assert_allclose(out, v[best, 0], rtol=1e-6)


def test_equal_scores_give_the_mean() -> None:
    q, k, v = _qkv(1, 2, 16, 16)
    out = _attend(np.zeros_like(q), _cache(k, v, "f32"), np.array([17]))
    np.testing.assert_allclose(out[0], v.mean(axis=0).reshape(-1), rtol=1e-5, atol=1e-6)


def test_one_visible_position_gives_its_values_exactly() -> None:
    q, k, v = _qkv(3, 2, 24, 20)
    out = _attend(q, _cache(k, v, "f32"), np.ones(3, np.int64))
    assert np.array_equal(out, np.tile(v[0].reshape(-1), (3, 1)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_query_that_is_no_number_spoils_its_own_output_only(bad: float) -> None:
    q, k, v = _qkv(19, 2, 16, 10)
    cache, visible = _cache(k, v, "f32"), _visible("all", 19, 10)
    clean = _attend(q, cache, visible)
    q[4, 1, 3] = bad
    out = _attend(q, cache, visible)
    wrong = np.isnan(out.reshape(19, 2, 16)).all(axis=2)
    assert np.argwhere(wrong).tolist() == [[4, 1]]
    assert np.array_equal(out.reshape(19, 2, 16)[~wrong], clean.reshape(19, 2, 16)[~wrong])


def test_what_lies_behind_the_visible_positions_is_not_read() -> None:
    q, k, v = _qkv(1, 2, 16, 20)
    cache = _cache(k, v, "f32")
    clean = _attend(q, cache, np.array([5]))
    cache.values[:, :, :, 5:] = np.nan
    cache.keys[:, :, :, 1:] = np.nan
    assert _attend(q, cache, np.array([5])).tobytes() == clean.tobytes()


@pytest.mark.parametrize("kept", KINDS)
@pytest.mark.parametrize("D", [8, 24, 128])
def test_queries_and_keys_are_turned_on_their_way_and_values_are_not(D: int, kept: str, on_threads: OnThreads) -> None:
    rng, t, H = np.random.default_rng(D), 19, 3
    qkv, angles = rng.normal(size=(t, H * 3 * D)).astype(F32), rng.uniform(0, 6, (t, D // 2))
    cos, sin = np.cos(angles).astype(F32), np.sin(angles).astype(F32)
    q, k, v = reference.split_rotate(qkv, cos, sin, H, 2)

    def turned() -> Any:
        cache = KVCache(1, H, D, 40, kept)
        queries = ran(append, cache.layer(0), qkv, cos, sin, np.arange(t) + 7, H, 2)
        cache.length = t + 7
        return (queries, *cache.plain(0))

    queries, keys, values = on_threads(turned)
    np.testing.assert_allclose(queries, _filled_up(q), atol=1e-6)
    for found, exact in ((keys[7:], k), (values[7:], v)):
        np.testing.assert_allclose(found, exact, atol={"f32": 1e-6, "f16": 2e-3, "int8": 0.02}[kept])
    assert not keys[:7].any()
