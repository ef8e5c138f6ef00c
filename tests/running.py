"""ran(layer_norm, x, ...): what a function that adds operations to a program gives, once they have run."""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from glmcpu.kernels.quantize_rows import GROUP, quantize_rows
from glmcpu.kernels.tiles import tile_of
from glmcpu.simd.program import Program


def ran(function: Callable[..., Any], *arguments: Any) -> Any:
    program = Program(numba.get_num_threads())
    result = function(program, *arguments)
    program.finish()
    return result


def quantized_by_token(x: NDArray[np.float32], factor: int = 1) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """What quantize_rows makes of x, token by token: codes (T, G*32), scales (T, G), offsets (T, G)."""
    T, G = len(x), -(-x.shape[1] // GROUP)
    codes, scales, offsets = ran(quantize_rows, x, factor)
    tiles = [(t, *map(int, tile_of(t, T))) for t in range(T)]
    order = np.array([[first * G + g * n + t - first for g in range(G)] for t, first, n in tiles])
    return codes[order].reshape(T, -1), scales[order], offsets[order]
