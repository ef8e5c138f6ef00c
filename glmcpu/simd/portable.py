"""The words that differ between instruction sets, in LLVM operations every CPU can lower. No CPU feature needed.

An ISA file defines, for 64 bytes seen as 16 lanes of 4:

    dot_nibbles(acc, w, x)   acc[lane] += sum of 4 w*x, w in 0..15, x in -127..127; for acc see NIBBLE_BITS
    add_pairs(acc, sums)     acc[lane] += sums[2*lane] + sums[2*lane + 1], only where NIBBLE_BITS is 16
    dot_bytes(acc, w, x)     the same as dot_nibbles for w in -128..127, short of OFFSET * sum(x), see below
    widen(h), narrow(f)      f16 bits (i16) to f32 and back, rounding to nearest even
    fma(a, b, c)             a * b + c for lanes of f32

OFFSET: some CPUs multiply unsigned by signed bytes only. Their dot_bytes adds OFFSET to every weight, and the caller
starts its accumulator at -OFFSET * sum(x), which it knows once for all rows. TILE: the tokens of a register tile.

NIBBLE_BITS: 32 where dot_nibbles adds to the 16 int32 of a row's sum. 16 where it adds to 32 int16, two for each row:
the products of 8 dots (8 * 2 * 15 * 127) fit, and widening after 8 of them is cheaper than after each. UNROLLED:
whether unrolling the loop over a group is faster; False where its weights do not fit into the registers.
"""

import platform

from llvmlite import ir

FEATURES: tuple[str, ...] = ()
CPU = "x86-64" if platform.machine().lower() in ("x86_64", "amd64") else ""
CPU_FEATURES = ""
OFFSET = 0
NIBBLE_BITS = 16
TILE = 4
UNROLLED = True

_I16, _I32, _F32 = ir.IntType(16), ir.IntType(32), ir.FloatType()


def _const(element: ir.Type, n: int, value: float) -> ir.Constant:
    return ir.Constant(ir.VectorType(element, n), [value] * n)


def dot_nibbles(builder: ir.IRBuilder, acc: ir.Value, w: ir.Value, x: ir.Value) -> ir.Value:
    """acc (32 i16): each lane takes two of a row's four products."""
    words = ir.VectorType(_I16, 32)
    w, x, eight = builder.bitcast(w, words), builder.bitcast(x, words), _const(_I16, 32, 8)
    low_bytes = [builder.ashr(builder.shl(v, eight), eight) for v in (w, x)]
    high_bytes = [builder.ashr(v, eight) for v in (w, x)]
    return builder.add(acc, builder.add(builder.mul(*low_bytes), builder.mul(*high_bytes)))


def add_pairs(builder: ir.IRBuilder, acc: ir.Value, sums: ir.Value) -> ir.Value:
    """acc (16 i32) += both halves of each lane of `sums`."""
    pairs, sixteen = builder.bitcast(sums, acc.type), _const(_I32, 16, 16)
    first = builder.ashr(builder.shl(pairs, sixteen), sixteen)
    return builder.add(acc, builder.add(first, builder.ashr(pairs, sixteen)))


def dot_bytes(builder: ir.IRBuilder, acc: ir.Value, w: ir.Value, x: ir.Value) -> ir.Value:
    """Two products of bytes just fit into 16 bits: 2 * 128 * 127."""
    return add_pairs(builder, acc, dot_nibbles(builder, _const(_I16, 32, 0), w, x))


def fma(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    """a * b + c, rounded twice: without the instruction, rounding once is a slow call for each number."""
    return builder.fadd(builder.fmul(a, b), c)


def widen(builder: ir.IRBuilder, half: ir.Value) -> ir.Value:
    """Shifts exponent and mantissa into place and rescales by 2**112; infinities and NaN get a full exponent."""
    n = half.type.count
    i32, f32 = ir.VectorType(_I32, n), ir.VectorType(_F32, n)
    bits = builder.zext(half, i32)
    magnitude = builder.and_(bits, _const(_I32, n, 0x7FFF))
    sign = builder.shl(builder.and_(bits, _const(_I32, n, 0x8000)), _const(_I32, n, 16))
    shifted = builder.shl(magnitude, _const(_I32, n, 13))
    finite = builder.bitcast(builder.fmul(builder.bitcast(shifted, f32), _const(_F32, n, 2.0**112)), i32)
    special = builder.or_(shifted, _const(_I32, n, 0x7F800000))
    is_special = builder.icmp_unsigned(">=", magnitude, _const(_I32, n, 0x7C00))
    return builder.bitcast(builder.or_(builder.select(is_special, special, finite), sign), f32)


def narrow(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """Rounds to nearest even in integer arithmetic; what is too large becomes infinity, NaN stays NaN."""
    n = value.type.count
    i32, f32 = ir.VectorType(_I32, n), ir.VectorType(_F32, n)
    bits = builder.bitcast(value, i32)
    magnitude = builder.and_(bits, _const(_I32, n, 0x7FFFFFFF))
    sign = builder.lshr(builder.and_(bits, _const(_I32, n, 0x80000000)), _const(_I32, n, 16))
    odd = builder.and_(builder.lshr(magnitude, _const(_I32, n, 13)), _const(_I32, n, 1))
    rounded = builder.add(builder.add(magnitude, _const(_I32, n, 0xC8000FFF)), odd)
    normal = builder.lshr(rounded, _const(_I32, n, 13))
    # Adding 0.5 lets the float adder do the rounding of a half-precision denormal.
    shifted = builder.fadd(builder.bitcast(magnitude, f32), _const(_F32, n, 0.5))
    denormal = builder.sub(builder.bitcast(shifted, i32), _const(_I32, n, 0x3F000000))
    is_denormal = builder.icmp_unsigned("<", magnitude, _const(_I32, n, 0x38800000))
    is_large = builder.icmp_unsigned(">=", magnitude, _const(_I32, n, 0x47800000))
    is_nan = builder.icmp_unsigned(">", magnitude, _const(_I32, n, 0x7F800000))
    special = builder.select(is_nan, _const(_I32, n, 0x7E00), _const(_I32, n, 0x7C00))
    half = builder.select(is_large, special, builder.select(is_denormal, denormal, normal))
    return builder.trunc(builder.or_(half, sign), ir.VectorType(_I16, n))
