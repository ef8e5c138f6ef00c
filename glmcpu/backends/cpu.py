"""The CPU backend: the compiled kernels and formats behind the operations a model asks for."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from glmcpu import formats
from glmcpu.backends import Batch, HostMemory, slabs
from glmcpu.cache import KVCache, kind_beside
from glmcpu.formats import Weight
from glmcpu.kernels import activations, append, attention, norms, threads
from glmcpu.simd import kernel
from glmcpu.simd.program import Program

Floats = NDArray[np.float32]


class Backend(HostMemory):
    """Kernels on `threads` threads (default: one for each physical core), one call at a time in a process.

    Operations are written down, not done: `finish` runs them all, in one parallel region. Arrays they return are empty
    until then.
    """

    def __init__(self, wanted: int | None = None, cache: str | None = None) -> None:
        self._cache = cache
        self.threads = threads.set_threads(wanted)
        self._program = Program(self.threads)
        self._kept: WeakKeyDictionary[KVCache, dict[Any, _Kept]] = WeakKeyDictionary()

    def is_compiled(self, formats: Mapping[str, str]) -> bool:
        """Whether the kernels are kept in the private folder of simd/kernel.py."""
        return kernel.compiled_before(f"attention._attend_{self.cache_kind(formats)}", *formats.values())

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Waits for the kernels of other threads; Numba keeps the number of threads for each caller's thread."""
        with kernel.entry:
            threads.set_threads(self.threads)
            try:
                yield
                self._program.finish()
            finally:
                self._program.clear()

    def finish(self) -> None:
        """Runs what was written down."""
        self._program.finish()

    def repeat(self, x: Floats, batch: Batch, compute: Callable[[Floats, Batch], Floats]) -> Floats:
        """Writes the operations down once for each shape, and then only runs them.

        What was written down is kept as long as the first sequence's cache, and one set of sequences at a time.
        """
        caches = tuple(segment.cache.serial for segment in batch.segments)
        shape = caches, tuple(segment.end for segment in batch.segments)
        kept = self._kept.setdefault(batch.segments[0].cache, {})
        if shape not in kept:
            if any(others != caches for others, _ in kept):
                kept.clear()
            self._program.finish()
            written, self._program = self._program, Program(self.threads)
            try:
                out = compute(x, batch)
                kept[shape] = _Kept(self._program, self._program.prepare(), _inputs(x, batch), out)
            finally:
                self._program = written
        return kept[shape].run(_inputs(x, batch))

    def cache_kind(self, formats: Mapping[str, str]) -> str:
        """The kind asked for, or float16 beside quantized weights."""
        return self._cache or kind_beside(formats)

    def new_cache(self, L: int, H: int, D: int, capacity: int, formats: Mapping[str, str]) -> KVCache:
        """cache.py"""
        return KVCache(L, H, D, capacity, self.cache_kind(formats))

    def rows(self, weight: Weight, ids: NDArray[np.int64]) -> Floats:
        """Rows of the embedding table."""
        return formats.rows(weight, ids)

    def take(self, x: Floats, which: NDArray[np.int64]) -> Floats:
        """A copy of some rows."""
        return np.ascontiguousarray(x[which])

    def in_slabs(self, h: Floats, O: int, compute: Callable[[Floats, Floats | None], Floats]) -> Floats:
        """Some hundred tokens at a time, written to memory of the program."""
        out = self._program.empty(len(h), O)
        for some in slabs(len(h)):
            compute(h[some], out[some])
        return out

    def linear(self, x: Floats, weight: Weight, out: Floats | None = None) -> Floats:
        """The format's own matrix product."""
        if out is None:
            out = self._program.empty(len(x), weight.O)
        formats.load(weight.format).matmul(self._program, out, x, weight.arrays, weight.bias)
        return out

    def layer_norm(self, x: Floats, scale: Floats, shift: Floats, epsilon: float) -> Floats:
        """kernels/norms.py"""
        return norms.layer_norm(self._program, x, scale, shift, epsilon)

    def gelu(self, x: Floats) -> Floats:
        """kernels/activations.py, in place."""
        return activations.gelu(self._program, x)

    def scale_add(self, h: Floats, alpha: float, y: Floats) -> Floats:
        """kernels/activations.py, over y."""
        return activations.scale_add(self._program, h, alpha, y)

    def attend(self, qkv: Floats, layer: int, batch: Batch, heads: int, parts: int) -> Floats:
        """kernels/attention.py, sequence by sequence."""
        out = self._program.empty(len(qkv), qkv.shape[1] // 3)
        for s in batch.segments:
            here, cache = slice(s.begin, s.end), s.cache.layer(layer)
            turn = batch.cos[here], batch.sin[here]
            q = append.append(self._program, cache, qkv[here], *turn, s.places, heads, parts)
            attention.attend(self._program, out[here], q, cache, s.visible)
        return out


def _inputs(x: Floats, batch: Batch) -> list[NDArray[Any]]:
    """The arrays that operations read, without the caches."""
    places = [array for segment in batch.segments for array in (segment.places, segment.visible)]
    return [x, batch.cos, batch.sin, *places]


@dataclass
class _Kept:
    """Operations of a whole forward: what runs them, what they read and what they write."""

    program: Program
    again: Callable[[], None]
    inputs: list[NDArray[Any]]
    out: Floats

    def run(self, inputs: list[NDArray[Any]]) -> Floats:
        """The result for other inputs of the same shapes."""
        for mine, other in zip(self.inputs, inputs, strict=True):
            mine[:] = other
        self.again()
        return self.out.copy()
