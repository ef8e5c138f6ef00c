"""Numba loops over plain arrays: what a forward does besides the formats' matrix products."""

BLOCK = 128
"""Positions of a cache that lie together, head by head."""
