"""Splitting the fused projection into heads and turning q and k by their positions.

ChatGLM-6B rotates each head in `parts` equal parts (two: the first by the position in the prompt, the second by the
position in the answer). Inside a part of width d, entries i and i + d/2 are one pair, turned by cos/sin number i.
"""

import numpy as np
from numpy.typing import NDArray

from glmcpu.simd.kernel import kernel
from glmcpu.simd.operation import floats, operation
from glmcpu.simd.program import Program


def split_rotate(
    program: Program,
    qkv: NDArray[np.float32],
    cos: NDArray[np.float32],
    sin: NDArray[np.float32],
    heads: int,
    parts: int,
) -> NDArray[np.float32]:
    """q, k and v of qkv (T, H*3*D), which is laid out head by head as [q_h | k_h | v_h].

    cos and sin are (T, D/2): the angles of part 0, then of part 1. Returns (3, T, H, P) with q and k rotated, P being D
    filled up with zeros to a multiple of 16, which is what attention reads.
    """
    T = len(qkv)
    D = qkv.shape[1] // (3 * heads)
    P = -(-D // 16) * 16
    out = program.empty(3, T, heads, P)
    program.add(_split_rotate, T * heads, 16, out, qkv, cos, sin, T, heads, D, P, parts)
    return out


@operation
def _split_rotate(a, worker, begin, end):
    _split_rotate_range(
        floats(a, 0), floats(a, 1), floats(a, 2), floats(a, 3), a[4], a[5], a[6], a[7], a[8], begin, end
    )


@kernel()
def _split_rotate_range(out, qkv, cos, sin, T, H, D, P, parts, begin, end):
    """Heads begin..end of the T * H there are."""
    half = D // (2 * parts)
    for head in range(begin, end):
        t = head // H
        for which in range(3):
            x, y = head * 3 * D + which * D, (which * T * H + head) * P
            for i in range(D, P):
                out[y + i] = 0
            if which == 2:
                for i in range(D):
                    out[y + i] = qkv[x + i]
                continue
            for part in range(parts):
                at, turn = part * 2 * half, t * (D // 2) + part * half
                for i in range(half):
                    c, s = cos[turn + i], sin[turn + i]
                    a, b = qkv[x + at + i], qkv[x + at + half + i]
                    out[y + at + i] = a * c - b * s
                    out[y + at + half + i] = b * c + a * s
