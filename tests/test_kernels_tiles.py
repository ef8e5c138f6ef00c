"""Tokens and register tiles: every token is in one, and none waits for a second that could be in the first."""

from glmcpu.kernels.tiles import tile_of, tile_size
from glmcpu.simd.tile import TILE


def _sizes(T: int) -> list[int]:
    sizes = list[int]()
    while sum(sizes) < T:
        sizes.append(int(tile_size(T - sum(sizes))))
    return sizes


def test_tiles_cover_all_tokens_and_up_to_a_tile_they_are_one() -> None:
    for T in range(1, 100):
        sizes = _sizes(T)
        assert sum(sizes) == T
        assert all(1 <= n <= TILE for n in sizes)
        assert len(sizes) == -(-T // TILE)
        assert max(sizes[-2:]) - min(sizes[-2:]) <= TILE // 2


def test_a_token_is_in_the_tile_that_covers_it() -> None:
    for T in range(1, 100):
        sizes = _sizes(T)
        expected = [(sum(sizes[:i]), n) for i, n in enumerate(sizes) for _ in range(n)]
        assert [tuple(map(int, tile_of(t, T))) for t in range(T)] == expected
