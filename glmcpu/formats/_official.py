"""The official row-wise quantizer, shared by int8 and int4: bit for bit what `quantize` computes from half weights.

    scale = half(half(max|row|) / levels)         levels = 127 or 7
    code  = round to even(half(half(w) / scale))

Source: THUDM/chatglm-6b, quantization.py (QuantizedLinear). A row of zeros has scale 0; its codes are 0. In a row
below 0.001 the half scale has so few digits that the largest code can pass the levels; the official cast then wraps
around, which turns the sign of that weight, and so does ours.
"""

import numpy as np
from numpy.typing import NDArray

from glmcpu.formats import ROWS
from glmcpu.simd.kernel import kernel
from glmcpu.simd.vector import as_half, div, load, splat, store_codes


def row_scales(weight: NDArray[np.float32], given: NDArray[np.float32] | None, levels: int) -> NDArray[np.float32]:
    """The scale of each row (o,) f32, zeros added up to a multiple of 16; `given` ones are kept."""
    if given is None:
        given = (np.abs(weight).max(axis=1, initial=0).astype(np.float16) / np.float16(levels)).astype(np.float32)
    return np.pad(given.astype(np.float32, copy=False), (0, -len(given) % ROWS))


@kernel()
def quantize_row(codes, weight, scale, half):
    """codes (I,) i8 of one row (I,) f32, I a multiple of 16; `half`: divide in half precision, as the official code."""
    if scale == 0:
        codes[:] = 0
        return
    for i in range(0, weight.size, 16):
        w = load(weight, i)
        store_codes(codes, i, as_half(div(as_half(w), splat(scale))) if half else div(w, splat(scale)))
