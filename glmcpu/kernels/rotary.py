"""Turning a head of a query or key by the token's positions.

ChatGLM-6B rotates each head in `parts` equal parts (two: the first by the position in the prompt, the second by the
position in the answer). Inside a part of width d, entries i and i + d/2 are one pair, turned by cos/sin number i.
"""

from glmcpu.simd.kernel import kernel


@kernel()
def rotate(out, x, at, cos, sin, turn, D, parts):
    """out[0..D) = the head x[at..at + D), turned by cos and sin[turn..turn + D/2): part 0's angles, then part 1's."""
    half = D // (2 * parts)
    for part in range(parts):
        first = part * 2 * half
        for i in range(half):
            c, s = cos[turn + part * half + i], sin[turn + part * half + i]
            a, b = x[at + first + i], x[at + first + half + i]
            out[first + i] = a * c - b * s
            out[first + half + i] = b * c + a * s
