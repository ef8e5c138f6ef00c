"""Turning a head of a query or key by the token's positions.

ChatGLM-6B rotates each head in `parts` equal parts (two: the first by the position in the prompt, the second by the
position in the answer). Inside a part of width d, entries i and i + d/2 are one pair, turned by cos/sin number i.
"""

from glmcpu.simd.kernel import kernel
from glmcpu.simd.vector import fma, load, mul, store, sub


@kernel()
def rotate(out, x, at, cos, sin, turn, D, parts):
    """out[0..D) = the head x[at..at + D), turned by cos and sin[turn..turn + D/2): part 0's angles, then part 1's."""
    half = D // (2 * parts)
    for part in range(parts):
        first, angle, whole = part * 2 * half, turn + part * half, half // 16 * 16
        for i in range(0, whole, 16):
            c, s = load(cos, angle + i), load(sin, angle + i)
            a, b = load(x, at + first + i), load(x, at + first + half + i)
            store(out, first + i, sub(mul(a, c), mul(b, s)))
            store(out, first + half + i, fma(b, c, mul(a, s)))
        for i in range(whole, half):
            c1, s1 = cos[angle + i], sin[angle + i]
            a1, b1 = x[at + first + i], x[at + first + half + i]
            out[first + i] = a1 * c1 - b1 * s1
            out[first + half + i] = b1 * c1 + a1 * s1
