"""f16: half precision, 16 bits a weight: the official checkpoint without loss. Activations and sums stay float32.

block b:  | input 0: 16 outputs f16 | input 1: 16 outputs f16 | ...
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from glmcpu.formats import ROWS, f32
from glmcpu.formats._blocks import blocks
from glmcpu.simd.operation import floats, halves, operation
from glmcpu.simd.program import Program

BITS_PER_WEIGHT = 16.0
EXACT = True


def layout(O: int, I: int) -> dict[str, tuple[tuple[int, ...], type[np.generic]]]:
    """values (blocks, I, 16) f16."""
    return {"values": ((blocks(O), I, ROWS), np.float16)}


def pack(weight: NDArray[np.float32], scale: NDArray[np.float32] | None = None) -> dict[str, NDArray[Any]]:
    """Rounds weight (o, I) to nearest even and puts it into blocks."""
    return {"values": f32.pack(weight)["values"].astype(np.float16)}


def decode(xp: Any, lanes: Any) -> Any:
    """Rows of values (n, I)."""
    return lanes["values"]


def matmul(
    program: Program, out: NDArray[np.float32], x: NDArray[np.float32], arrays: Any, bias: NDArray[np.float32]
) -> None:
    """out (T, O) = x (T, I) @ weight.T + bias."""
    f32.add_matmul(program, _matmul_f16, out, x, arrays["values"], bias)


@operation
def _matmul_f16(a, worker, begin, end):
    f32.matmul_range(a[4], begin, end, floats(a, 0), floats(a, 1), halves(a, 2), floats(a, 3), a[5], a[6])
