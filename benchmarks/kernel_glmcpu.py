"""Our kernels as a contestant of kernels.py, on one ISA (GLMCPU_ISA); run by it with THREADS.

    "matmul int4_g32 128 500"     the four matrices of a layer of ChatGLM-6B, 128 tokens, for 500 ms
    "attend f16 1 1900 500"       one layer's attention, 1 query over 1900 positions
    "small layer_norm 512 500"    one of SMALL

Each answers seconds, the bytes read and the multiply-adds of one such step, and the ceilings, the mean of before and
after. Steps that read much for few tokens go through so many copies that no cache holds them (READ_BYTES); all steps of
a run are one program, as in a forward, since waking the threads takes longer than a small step.
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from peer_worker import repeated, serve_commands

from glmcpu import formats
from glmcpu.backends.cpu import machine
from glmcpu.cache import KVCache, bytes_for
from glmcpu.kernels.activations import gelu, scale_add
from glmcpu.kernels.append import append
from glmcpu.kernels.attention import attend
from glmcpu.kernels.ceiling import Ceilings
from glmcpu.kernels.norms import layer_norm
from glmcpu.kernels.quantize_rows import quantize_rows
from glmcpu.simd.program import Program

MATRICES = ((12288, 4096), (4096, 4096), (16384, 4096), (4096, 16384))
C, H, D, F = 4096, 32, 128, 16384
READ_BYTES = 256 << 20
FEW = 16  # tokens for which reading counts
SMALL_STEPS = 64
SLAB_ROWS = 64  # of a matrix that are drawn and packed; they repeat

Answer = dict[str, Any]


class Kernels:
    """The commands, and the weights of the format that was asked for last."""

    def __init__(self, threads: int) -> None:
        self._ceilings = Ceilings(threads)
        self._threads = self._ceilings.threads
        self._rng = np.random.default_rng(0)
        self._kept: tuple[str, list[list[formats.Arrays]]] = ("", [])

    def matmul(self, name: str, T: int, budget_ms: int) -> Answer:
        form, layers, program = formats.load(name), self._layers(name), Program(self._threads)
        steps = layers if T <= FEW else layers[:1]
        xs = [self._floats(T, I) for _, I in MATRICES]
        outs = [np.empty((T, O), np.float32) for O, _ in MATRICES]
        for layer in steps:
            for out, x, arrays in zip(outs, xs, layer, strict=True):
                form.matmul(program, out, x, arrays, np.zeros(out.shape[1], np.float32))
        mac = T * sum(O * I for O, I in MATRICES)
        return self._measured(program, len(steps), budget_ms, _nbytes(layers[0]), mac, form.EXACT)

    def attend(self, kind: str, T: int, S: int, budget_ms: int) -> Answer:
        position_bytes = bytes_for(1, H, D, 64, kind) // 64
        L = -(-READ_BYTES // (S * position_bytes)) if T <= FEW else 1
        cache, q, program = KVCache(L, H, D, S, kind), self._floats(T, H, D), Program(self._threads)
        for array in (cache.keys, cache.values, cache.key_scales, cache.value_scales):
            array[...] = np.resize(self._numbers(array.dtype), array.shape)
        out, visible = np.empty((T, H * D), np.float32), np.full(T, S, np.int64)
        for n in range(L):
            attend(program, out, q, cache.layer(n), visible)
        return self._measured(program, L, budget_ms, S * position_bytes, 2 * T * S * H * D, True)

    def small(self, name: str, T: int, budget_ms: int) -> Answer:
        program, steps = Program(self._threads), -(-SMALL_STEPS // T)
        results = [SMALL[name](self, program, T) for _ in range(steps)]
        return self._measured(program, steps, budget_ms, results[0][1], 0, True)

    def _measured(self, program: Program, steps: int, budget_ms: int, read_bytes: int, mac: int, exact: bool) -> Answer:
        """Seconds, bytes and multiply-adds of one of the program's equal steps."""
        run, peak = program.prepare(), self._ceilings.fma if exact else self._ceilings.dot
        before = self._ceilings.read(), peak()
        seconds = [s / steps for s in repeated(run, budget_ms / 1e3)]
        read, most = ((a + b) / 2 for a, b in zip(before, (self._ceilings.read(), peak()), strict=True))
        return {"seconds": seconds, "bytes": read_bytes, "mac": mac, "read_gb_per_s": read, "peak_gmac_per_s": most}

    def _layers(self, name: str) -> list[list[formats.Arrays]]:
        """Copies of a layer in a format, READ_BYTES in all or a little more."""
        if self._kept[0] != name:
            self._kept = ("", [])
            layers = [self._layer(name)]
            while len(layers) * _nbytes(layers[0]) < READ_BYTES:
                layers.append([{key: a.copy() for key, a in arrays.items()} for arrays in layers[0]])
            self._kept = (name, layers)
        return self._kept[1]

    def _layer(self, name: str) -> list[formats.Arrays]:
        form, layer = formats.load(name), []
        for O, I in MATRICES:
            slab = form.pack(np.float32(0.02) * self._floats(SLAB_ROWS, I))
            layer.append({key: np.resize(slab[key], shape) for key, (shape, _) in form.layout(O, I).items()})
        return layer

    def _floats(self, *shape: int) -> np.ndarray:
        return self._rng.standard_normal(shape, np.float32)

    def _numbers(self, dtype: np.dtype) -> np.ndarray:
        """Some numbers of a cache: float16 bits, codes, or scales."""
        x = self._floats(1 << 16)
        if dtype == np.uint16:
            return x.astype(np.float16).view(np.uint16)
        return (x * 30).clip(-127, 127).astype(np.int8) if dtype == np.int8 else np.abs(x) / 100


def _layer_norm(k: Kernels, program: Program, T: int) -> tuple[Any, int]:
    return layer_norm(program, k._floats(T, C), np.ones(C, np.float32), np.zeros(C, np.float32), 1e-5), 8 * T * C


def _gelu(k: Kernels, program: Program, T: int) -> tuple[Any, int]:
    return gelu(program, k._floats(T, F) + np.float32(10)), 8 * T * F  # in place: large numbers stay what they are


def _scale_add(k: Kernels, program: Program, T: int) -> tuple[Any, int]:
    return scale_add(program, k._floats(T, C), 7.5, k._floats(T, C)), 12 * T * C


def _quantize_rows(k: Kernels, program: Program, T: int) -> tuple[Any, int]:
    return quantize_rows(program, k._floats(T, C), -8), 5 * T * C


def _append(k: Kernels, program: Program, T: int) -> tuple[Any, int]:
    cache, angles = KVCache(1, H, D, T, "f16"), k._floats(T, D // 2)
    qkv = k._floats(T, 3 * C)
    return append(program, cache.layer(0), qkv, np.cos(angles), np.sin(angles), np.arange(T), H, 2), 20 * T * C


SMALL = {
    "layer_norm": _layer_norm,
    "gelu": _gelu,
    "scale_add": _scale_add,
    "quantize_rows": _quantize_rows,
    "append": _append,
}
"""Name -> what adds it to a program; gives its result, and the bytes it reads and writes."""


def _nbytes(layer: list[formats.Arrays]) -> int:
    return sum(array.nbytes for arrays in layer for array in arrays.values())


def _commands() -> dict[str, Callable[..., Any]]:
    kernels = Kernels(int(sys.argv[1]))

    def ceilings() -> dict[str, float]:
        c = kernels._ceilings
        return {"read_gb_per_s": c.read(), "dot_gmac_per_s": c.dot(), "fma_gmac_per_s": c.fma()}

    return {
        "about": machine,
        "ceilings": ceilings,
        "matmul": kernels.matmul,
        "attend": kernels.attend,
        "small": kernels.small,
    }


if __name__ == "__main__":
    serve_commands(_commands)
