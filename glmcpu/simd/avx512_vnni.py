"""x86-64 with AVX-512 and its dot product of bytes: vpdpbusd adds 64 unsigned x signed products in one instruction."""

from llvmlite import ir
from numba.core import cgutils

from glmcpu.simd import avx2

FEATURES = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni")
CPU = "icelake-client"
CPU_FEATURES = ""
OFFSET = 128
NIBBLE_BITS = 32
TILE = 8
UNROLLED = True

widen, narrow, fma = avx2.widen, avx2.narrow, avx2.fma


def dot_nibbles(builder: ir.IRBuilder, acc: ir.Value, w: ir.Value, x: ir.Value) -> ir.Value:
    """acc (16 i32) += dot of w (64 u8) and x (64 i8) by fours."""
    lanes = acc.type
    dot = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(lanes, [lanes] * 3), "llvm.x86.avx512.vpdpbusd.512"
    )
    return builder.call(dot, [acc, builder.bitcast(w, lanes), builder.bitcast(x, lanes)])


def dot_bytes(builder: ir.IRBuilder, acc: ir.Value, w: ir.Value, x: ir.Value) -> ir.Value:
    """acc (16 i32) += dot of w + 128 and x (both 64 i8) by fours: flipping the top bit adds 128."""
    flipped = builder.xor(w, ir.Constant(w.type, [-128] * w.type.count))
    return dot_nibbles(builder, acc, flipped, x)
