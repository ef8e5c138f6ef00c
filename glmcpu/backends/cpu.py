"""The CPU backend: the compiled kernels and formats behind the operations a model asks for."""

import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glmcpu import formats
from glmcpu.cache import KVCache, Segment, dtype_beside
from glmcpu.formats import Weight
from glmcpu.kernels import activations, attention, norms, rotary, threads
from glmcpu.simd import isa, kernel

Floats = NDArray[np.float32]


class Backend:
    """Kernels on `threads` threads (default: one for each physical core), one call at a time in a process."""

    def __init__(self, wanted: int | None = None) -> None:
        self.threads = threads.set_threads(wanted)

    def is_compiled(self, formats: Mapping[str, str]) -> bool:
        """Whether the kernels are kept in the private folder of simd/kernel.py."""
        return kernel.compiled_before("attention", *("f32" if name == "f16" else name for name in formats.values()))

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Waits for the kernels of other threads; Numba keeps the number of threads for each caller's thread."""
        with kernel.entry:
            threads.set_threads(self.threads)
            yield

    def new_cache(self, L: int, H: int, D: int, capacity: int, formats: Mapping[str, str]) -> KVCache:
        """float16 beside quantized weights."""
        return KVCache(L, H, D, capacity, dtype_beside(formats))

    def rows(self, weight: Weight, ids: NDArray[np.int64]) -> Floats:
        """Rows of the embedding table."""
        return formats.rows(weight, ids)

    def linear(self, x: Floats, weight: Weight) -> Floats:
        """The format's own matrix product."""
        out = np.empty((len(x), weight.O), np.float32)
        formats.load(weight.format).matmul(out, x, weight.arrays, weight.bias)
        return out

    def layer_norm(self, x: Floats, scale: Floats, shift: Floats, epsilon: float) -> Floats:
        """kernels/norms.py"""
        return norms.layer_norm(x, scale, shift, epsilon)

    def gelu(self, x: Floats) -> Floats:
        """kernels/activations.py, in place."""
        return activations.gelu(x)

    def scale_add(self, h: Floats, alpha: float, y: Floats) -> Floats:
        """kernels/activations.py, over y."""
        return activations.scale_add(h, alpha, y)

    def split_rotate(self, qkv: Floats, cos: Floats, sin: Floats, heads: int, parts: int) -> Floats:
        """kernels/rotary.py"""
        return rotary.split_rotate(qkv, cos, sin, heads, parts)

    def attend(self, qkv: Floats, layer: int, segments: Sequence[Segment], D: int) -> Floats:
        """kernels/attention.py, sequence by sequence."""
        q, k, v = qkv
        out = np.empty((q.shape[0], q.shape[1] * D), np.float32)
        for segment in segments:
            here, cache = slice(segment.begin, segment.end), segment.cache
            keys, values = cache.keys[layer], cache.values[layer]
            attention.append(keys, values, k[here], v[here], cache.length)
            attention.attend(out[here], q[here], keys, values, segment.visible)
        return out


def machine() -> dict[str, Any]:
    """What kernels run on: cpu, isa, isas (all this machine has), cores, threads, threading_layer."""
    return {
        "cpu": _cpu_name(),
        "isa": isa.name,
        "isas": isa.available(),
        "cores": threads.physical_cores(),
        "threads": threads.default_threads(),
        "threading_layer": threads.threading_layer(),
    }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
