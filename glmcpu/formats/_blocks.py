"""What the formats share: the block of 16 outputs, and how a matrix of whole numbers is put into it.

                 input 0 1 2 3        4 5 6 7      ...
    bytes:   | row 0: 4 i8 | row 1: 4 i8 | ... | row 15: 4 i8 |     one 64-byte vector = 16 outputs x 4 inputs
    nibbles: the same 64 bytes hold 16 outputs x 8 inputs: the low nibble of byte (4*row + i) is input i,
             the high one input 4 + i, each 0..15 for -8..7

One vector load feeds one dot product of bytes by fours, whose 16 results are 16 different outputs: nothing is summed
across lanes. Inputs are filled up to a multiple of 32 with code 0, outputs to a multiple of 16.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from glmcpu.formats import ROWS
from glmcpu.simd.kernel import kernel

GROUP = 32


def blocks(O: int) -> int:
    """How many blocks of 16 outputs hold O outputs."""
    return -(-O // ROWS)


def groups(I: int) -> int:
    """How many groups of 32 inputs hold I inputs."""
    return -(-I // GROUP)


def pad(weight: NDArray[np.float32], row_multiple: int, column_multiple: int) -> NDArray[np.float32]:
    """weight with zero rows and columns added up to the multiples; itself where nothing is missing."""
    o, i = weight.shape
    missing = (-o % row_multiple, -i % column_multiple)
    if missing == (0, 0):
        return np.ascontiguousarray(weight, np.float32)
    return np.pad(weight.astype(np.float32, copy=False), ((0, missing[0]), (0, missing[1])))


def nibbles(xp: Any, codes: Any) -> Any:
    """Codes (n, I/8, 4) of n rows as whole numbers -8..7, (n, I) i8."""
    both = xp.stack([codes & 15, codes >> 4], 2)
    return both.reshape(len(codes), -1).view(xp.int8) - 8


@kernel()
def place_bytes(out, codes, lane):
    """Writes one row's codes (I,) i8 into lane `lane` of a block (I/4, 16, 4)."""
    for j in range(codes.size // 4):
        for i in range(4):
            out[j, lane, i] = codes[4 * j + i]


@kernel()
def place_nibbles(out, codes, lane):
    """Writes the low four bits of a row's first I codes, i8, -8..7, into lane `lane` of a block (I/8, 16, 4)."""
    for j in range(out.shape[0]):
        for i in range(4):
            low, high = (codes[8 * j + i] + 8) & 15, (codes[8 * j + 4 + i] + 8) & 15
            out[j, lane, i] = np.uint8(low | (high << 4))
