"""Splitting the fused projection into heads and turning q and k by their positions.

ChatGLM-6B rotates each head in `parts` equal parts (two: the first by the position in the prompt, the second by the
position in the answer). Inside a part of width d, entries i and i + d/2 are one pair, turned by cos/sin number i.
"""

import numpy as np
from numba import prange
from numpy.typing import NDArray

from glmcpu.kernels.threads import threads
from glmcpu.simd.kernel import kernel


def split_rotate(
    qkv: NDArray[np.float32], cos: NDArray[np.float32], sin: NDArray[np.float32], heads: int, parts: int
) -> NDArray[np.float32]:
    """q, k and v of qkv (T, H*3*D), which is laid out head by head as [q_h | k_h | v_h].

    cos and sin are (T, D/2): the angles of part 0, then of part 1. Returns (3, T, H, P) with q and k rotated, P being D
    filled up with zeros to a multiple of 16, which is what attention reads.
    """
    T = len(qkv)
    D = qkv.shape[1] // (3 * heads)
    P = -(-D // 16) * 16
    out = np.zeros((3, T, heads, P), np.float32) if P != D else np.empty((3, T, heads, P), np.float32)
    arguments = (out, qkv.reshape(T, heads, 3, D), cos, sin, parts)
    if T < 4:  # too little to share
        _split_rotate_range(*arguments, 0, T)
    else:
        _split_rotate_parallel(*arguments, min(threads(), T))
    return out


@kernel()
def _split_rotate_range(out, qkv, cos, sin, parts, begin, end):
    H, D = qkv.shape[1], qkv.shape[3]
    half = D // (2 * parts)
    for t in range(begin, end):
        for h in range(H):
            out[2, t, h, :D] = qkv[t, h, 2]
            for which in range(2):
                x, y = qkv[t, h, which], out[which, t, h]
                for part in range(parts):
                    at = part * 2 * half
                    for i in range(half):
                        c, s = cos[t, part * half + i], sin[t, part * half + i]
                        a, b = x[at + i], x[at + half + i]
                        y[at + i] = a * c - b * s
                        y[at + half + i] = b * c + a * s


@kernel(parallel=True)
def _split_rotate_parallel(out, qkv, cos, sin, parts, workers):
    T = qkv.shape[0]
    for w in prange(workers):
        _split_rotate_range(out, qkv, cos, sin, parts, T * w // workers, T * (w + 1) // workers)
