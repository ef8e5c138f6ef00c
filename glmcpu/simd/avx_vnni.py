"""x86-64 with AVX-VNNI: vpdpbusd in registers of 256 bits, for CPUs with the dot product of bytes but without AVX-512.

That is Alder Lake and later, where it has an encoding of its own (VEX). The same operation is part of AVX-512 VL and
VNNI (EVEX), so this file also runs, and is tested, on machines that have only those; LLVM picks the encoding.
"""

from llvmlite import binding, ir
from numba.core import cgutils

from glmcpu.simd import avx2

_VEX = binding.get_host_cpu_features().get("avxvnni", False)
_VNNI = ("avxvnni",) if _VEX else ("avx512vl", "avx512vnni")

FEATURES = (*avx2.FEATURES, *_VNNI)
CPU = avx2.CPU
# With EVEX there is AVX-512, and LLVM joins two halves in one 512-bit register when it can: only functions with the
# attribute min-legal-vector-width, which llvmlite cannot set, are kept from that. What prefer-256-bit still does is to
# keep LLVM's own vectorizing at 256 bits. So such a forced run shows the arithmetic of a laptop, not its speed.
CPU_FEATURES = ",".join(f"+{feature}" for feature in (*_VNNI, *(() if _VEX else ("prefer-256-bit",))))
OFFSET = 128
NIBBLE_BITS = 32
TILE = 4
UNROLLED = True

widen, narrow, fma = avx2.widen, avx2.narrow, avx2.fma

_I32 = ir.IntType(32)


def dot_nibbles(builder: ir.IRBuilder, acc: ir.Value, w: ir.Value, x: ir.Value) -> ir.Value:
    """acc (16 i32) += dot of w (64 u8) and x (64 i8) by fours: exact, nothing saturates."""
    half = ir.VectorType(_I32, 8)
    dot = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(half, [half] * 3), "llvm.x86.avx512.vpdpbusd.256"
    )
    lanes = [acc, builder.bitcast(w, acc.type), builder.bitcast(x, acc.type)]
    low, high = (builder.call(dot, [_eight(builder, v, begin) for v in lanes]) for begin in (0, 8))
    return builder.shuffle_vector(low, high, ir.Constant(ir.VectorType(_I32, 16), [*range(16)]))


def dot_bytes(builder: ir.IRBuilder, acc: ir.Value, w: ir.Value, x: ir.Value) -> ir.Value:
    """acc (16 i32) += dot of w + 128 and x (both 64 i8) by fours: flipping the top bit adds 128.

    One instruction for a register of weights, whatever the number of tokens; moving the signs to x costs one a token.
    """
    flipped = builder.xor(w, ir.Constant(w.type, [-128] * w.type.count))
    return dot_nibbles(builder, acc, flipped, x)


def _eight(builder: ir.IRBuilder, v: ir.Value, begin: int) -> ir.Value:
    """Lanes begin..begin+7."""
    return builder.shuffle_vector(v, v, ir.Constant(ir.VectorType(_I32, 8), [*range(begin, begin + 8)]))
