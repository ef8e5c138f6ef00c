"""Which tokens share a register tile: whole tiles from the first token on, and the last two share the rest evenly.

    19 tokens, tiles of 8:   0 .. 7 | 8 .. 13 | 14 .. 18

Up to TILE tokens are one tile, whatever their number: weights stream from memory once, and a second one would keep
memory waiting.
"""

from glmcpu.simd.kernel import kernel
from glmcpu.simd.tile import TILE


@kernel()
def tile_size(left):
    """How many of the tokens that are left go into the next tile."""
    if left <= TILE:
        return left
    return TILE if left >= 2 * TILE else (left + 1) // 2


@kernel()
def tile_of(t, T):
    """(first token, size) of the tile that token t of T is in."""
    begin = max(0, min(t // TILE, T // TILE - 1)) * TILE
    size = tile_size(T - begin)
    while t >= begin + size:
        begin += size
        size = tile_size(T - begin)
    return begin, size
