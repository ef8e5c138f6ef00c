"""The loop all matrix products share: blocks of 16 outputs, and for each the tokens in register tiles.

A format gives the inner part, block(zero, t, b, ahead, *arguments): outputs of block b for the n tokens from t on, n
being the size of the tile `zero`. One thread's loop goes over its blocks; weights stream from memory once, at the
first tile of a block, and come from the cache for the others. `ahead` is how far in front of that stream the block
should prefetch, in bytes: at the ends of pages the CPU's own prefetching stops (see benchmarks/LOG.md); it is 0 for the
other tiles.
"""

from collections.abc import Callable
from typing import Any

from glmcpu.kernels.tiles import tile_size
from glmcpu.simd.kernel import kernel
from glmcpu.simd.tile import TILE, zeros

_AHEAD = 4096
_CHUNK_BYTES = 1 << 19
_4, _5, _6, _7 = (min(n, TILE) for n in (4, 5, 6, 7))  # larger tiles than TILE are never needed, nor compiled


def tiled(block: Any) -> Callable[..., Any]:
    """The kernel range_(T, begin, end, *arguments) that does blocks begin..end for T tokens."""

    def matmul_range(T, begin, end, *arguments):
        for b in range(begin, end):
            t, ahead = 0, _AHEAD
            while t < T:
                n = tile_size(T - t)
                if n == TILE:
                    block(zeros(TILE), t, b, ahead, *arguments)
                elif n == 1:
                    block(zeros(1), t, b, ahead, *arguments)
                elif n == 2:
                    block(zeros(2), t, b, ahead, *arguments)
                elif n == 3:
                    block(zeros(3), t, b, ahead, *arguments)
                elif n == 4:
                    block(zeros(_4), t, b, ahead, *arguments)
                elif n == 5:
                    block(zeros(_5), t, b, ahead, *arguments)
                elif n == 6:
                    block(zeros(_6), t, b, ahead, *arguments)
                else:
                    block(zeros(_7), t, b, ahead, *arguments)
                t, ahead = t + n, 0

    matmul_range.__module__ = block.__module__  # each format keeps its own on disk
    return kernel()(matmul_range)


def grain(block_bytes: int) -> int:
    """Blocks of so many bytes worth a chunk: long enough for a stream, short enough that no thread waits long."""
    return max(1, _CHUNK_BYTES // block_bytes)
