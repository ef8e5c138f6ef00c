"""The machine's two ceilings, measured with the kernels' own threads: reading memory, and multiplying bytes.

    read_gb_per_s(threads, data)    every byte of `data` loaded once and added up: decode cannot be faster
    dot_gmac_per_s(threads)         the dot product of the int4 formats, operands in registers: prefill cannot be faster
    fma_gmac_per_s(threads)         the same for the formats that multiply floats

The arithmetic is done in tiles of 4, 8 and 12 registers and the best counts: a CPU needs enough independent sums to be
busy and has room for so many. A weight vector is loaded from 4 KB for each tile, or the compiler would multiply once
and only add in the loop. GMAC: 10**9 multiply-adds of one number each, GB: 10**9 bytes.
"""

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glmcpu.kernels.machine import machine
from glmcpu.kernels.threads import set_threads
from glmcpu.memory import alloc
from glmcpu.peak_memory import peak_rss_bytes
from glmcpu.simd.kernel import entry, kernel
from glmcpu.simd.operation import Operation, floats, int32s, operation, signed_bytes, unsigned_bytes
from glmcpu.simd.program import Program
from glmcpu.simd.tile import (
    tile_dot_nibbles,
    tile_fma,
    tile_offsets,
    tile_scaled,
    tile_store,
    tile_sums,
    tile_total,
    zeros,
)
from glmcpu.simd.vector import add, load, load_bytes, splat, store

_READ_BYTES = 1 << 29  # at a time: far more than any cache holds
_PIECE = 1 << 16  # floats a thread reads in one go
_VECTORS = 64  # of 64 bytes: 4 KB, in every first-level cache
_CHUNKS = 4  # a thread
_TRIES = 5
_CHUNK_S = 2e-3
_TILES = (4, 8, 12)
_OUT = max(_TILES) * 16  # floats a chunk writes


class Ceilings:
    """The machine's limits with `threads` threads (None: one for each physical core), measured again and again."""

    def __init__(self, threads: int | None = None) -> None:
        """Raises UsageError for threads out of range, MachineError when there is no memory to read."""
        self.threads = set_threads(threads)
        self._data = _read_buffer()
        self.extra_bytes = self._data.nbytes
        self.read_gb_per_s = self.read()
        self.dot_gmac_per_s = self.dot()
        self.fma_gmac_per_s = self.fma()

    def read(self) -> float:
        """GB/s of reading memory, now."""
        return read_gb_per_s(self.threads, self._data)

    def dot(self) -> float:
        """GMAC/s of the dot product of bytes, now."""
        return dot_gmac_per_s(self.threads)

    def fma(self) -> float:
        """GMAC/s of multiply-adds of floats, now."""
        return fma_gmac_per_s(self.threads)

    def machine(self) -> dict[str, Any]:
        """kernels/machine.py"""
        return machine()

    def peak_bytes(self) -> int | None:
        """The most memory this process has held; what is read for the ceiling is there all the time and left out."""
        peak = peak_rss_bytes()
        return None if peak is None else peak - self.extra_bytes


def _read_buffer() -> NDArray[np.float32]:
    """Memory to be read, its pages taken; raises MachineError when there is no room for it."""
    data: NDArray[Any] = alloc((_READ_BYTES // 4,), np.float32, "measuring the speed of memory")
    data.fill(1)
    return data


def read_gb_per_s(threads: int, data: NDArray[np.float32]) -> float:
    """GB/s at which `threads` threads read data (n,), the best of a few tries."""
    pieces = data.size // _PIECE
    sums = np.empty((pieces, 16), np.float32)
    return 4e-9 * pieces * _PIECE / _best_s(_TRIES, threads, _read, pieces, 4, sums, data)


def dot_gmac_per_s(threads: int) -> float:
    """GMAC/s of tile_dot_nibbles on `threads` threads, the best tile."""
    weights, x, sums = np.ones(_VECTORS * 64, np.uint8), np.ones(max(_TILES) * 4, np.int8), np.zeros(1, np.int32)
    return max(_gmac_per_s(threads, _dot, 64, n, weights, x, sums) for n in _TILES)


def fma_gmac_per_s(threads: int) -> float:
    """GMAC/s of tile_fma on `threads` threads, the best tile."""
    weights, x = np.zeros(_VECTORS * 16, np.float32), np.ones(max(_TILES), np.float32)
    return max(_gmac_per_s(threads, _fma, 16, n, weights, x) for n in _TILES)


def _gmac_per_s(threads: int, op: Operation, lanes: int, n: int, *arguments: NDArray[Any]) -> float:
    """GMAC/s of an operation with tiles of n vectors, `lanes` multiply-adds each."""
    chunks, loops = threads * _CHUNKS, 1
    out = np.zeros(chunks * _OUT, np.float32)
    while _best_s(3, 1, op, 1, 1, out, loops, n, *arguments) < _CHUNK_S:
        loops *= 2
    seconds = _best_s(_TRIES, threads, op, chunks, 1, out, loops, n, *arguments)
    return chunks * loops * _VECTORS * n * lanes / 1e9 / seconds


def _best_s(tries: int, threads: int, op: Operation, items: int, grain: int, *arguments: NDArray[Any] | int) -> float:
    program, best = Program(threads), float("inf")
    program.add(op, items, grain, *arguments)
    run = program.prepare()
    with entry:  # the threads are the kernels': no other program may run
        for _ in range(tries):
            begin = time.perf_counter()
            run()
            best = min(best, time.perf_counter() - begin)
    return best


@kernel()
def _read_range(sums, data, begin, end):
    zero = splat(np.float32(0))
    for piece in range(begin, end):
        a, b, c, d = zero, zero, zero, zero
        for i in range(piece * _PIECE, (piece + 1) * _PIECE, 64):
            a, b = add(a, load(data, i)), add(b, load(data, i + 16))
            c, d = add(c, load(data, i + 32)), add(d, load(data, i + 48))
        store(sums, piece * 16, add(add(a, b), add(c, d)))


@operation
def _read(a, worker, begin, end):
    _read_range(floats(a, 0), floats(a, 1), begin, end)


@kernel()
def _dot_range(zero, out, weights, x, none_yet, loops, begin, end):
    """Tiles as large as `zero`; the sums are stored, or the compiler would leave everything out."""
    one, none = splat(np.float32(1)), splat(np.float32(0))
    for chunk in range(begin, end):
        ints = tile_offsets(zero, none_yet, 0, 0)
        for _ in range(loops):
            for group in range(0, _VECTORS, 8):
                sums = tile_sums(ints)
                for v in range(group, group + 8):
                    sums = tile_dot_nibbles(sums, load_bytes(weights, v * 64), x, 0, 4)
                ints = tile_total(sums, ints)
        at = chunk * _OUT
        out[at] = 1  # a factor of 1 for tile_scaled
        tile_store(out, at, 16, tile_scaled(zero, ints, one, out, at, 0), one, none, 16)


@operation
def _dot(a, worker, begin, end):
    out, weights, x, sums, loops = floats(a, 0), unsigned_bytes(a, 3), signed_bytes(a, 4), int32s(a, 5), a[1]
    if a[2] == 4:
        _dot_range(zeros(4), out, weights, x, sums, loops, begin, end)
    elif a[2] == 8:
        _dot_range(zeros(8), out, weights, x, sums, loops, begin, end)
    else:
        _dot_range(zeros(12), out, weights, x, sums, loops, begin, end)


@kernel()
def _fma_range(zero, out, weights, x, loops, begin, end):
    one, none = splat(np.float32(1)), splat(np.float32(0))
    for chunk in range(begin, end):
        acc = zero
        for _ in range(loops):
            for v in range(_VECTORS):
                acc = tile_fma(acc, load(weights, v * 16), x, 0, 1)
        tile_store(out, chunk * _OUT, 16, acc, one, none, 16)


@operation
def _fma(a, worker, begin, end):
    out, weights, x, loops = floats(a, 0), floats(a, 3), floats(a, 4), a[1]
    if a[2] == 4:
        _fma_range(zeros(4), out, weights, x, loops, begin, end)
    elif a[2] == 8:
        _fma_range(zeros(8), out, weights, x, loops, begin, end)
    else:
        _fma_range(zeros(12), out, weights, x, loops, begin, end)
