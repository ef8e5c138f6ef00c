"""int4_g128: four bits a weight and one half-precision scale for every 128 inputs of an output.

    block b:  | inputs 0..7: 16 outputs x 4 bytes | inputs 8..15 | ...  nibbles as in _blocks.py, filled up to 32 inputs

As int4_g32 with a quarter of the scales: 4.125 bits a weight.
"""

from glmcpu.formats._blocks import nibbles
from glmcpu.formats._groups import Grouped
from glmcpu.formats.int4_g32 import CODES, multiply, place
from glmcpu.simd.operation import operation

BITS_PER_WEIGHT = 4.125
EXACT = False
GROUP = 128


@operation
def _matmul(a, worker, begin, end):
    multiply(a, begin, end)


_grouped = Grouped(GROUP, CODES, place, nibbles, _matmul)
layout, pack, store, decode, matmul = _grouped.layout, _grouped.pack, _grouped.store, _grouped.decode, _grouped.matmul
