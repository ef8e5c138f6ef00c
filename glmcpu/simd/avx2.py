"""x86-64 with AVX2, FMA and F16C: multiply-adds of bytes in two halves, and conversion of f16 in hardware."""

from llvmlite import ir
from numba.core import cgutils

FEATURES = ("avx2", "fma", "f16c")
CPU = "haswell"
CPU_FEATURES = ""
OFFSET = 0
NIBBLE_BITS = 16
TILE = 4
UNROLLED = False

_I8, _I16, _I32 = ir.IntType(8), ir.IntType(16), ir.IntType(32)


def _call(builder: ir.IRBuilder, name: str, result: ir.Type, *args: ir.Value) -> ir.Value:
    kind = ir.FunctionType(result, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


def _halves(builder: ir.IRBuilder, v: ir.Value) -> list[ir.Value]:
    n = v.type.count // 2
    undefined = ir.Constant(v.type, ir.Undefined)
    index = ir.VectorType(_I32, n)
    return [builder.shuffle_vector(v, undefined, ir.Constant(index, [*range(begin, begin + n)])) for begin in (0, n)]


def _pairs(builder: ir.IRBuilder, w: ir.Value, x: ir.Value) -> ir.Value:
    """Sums of two products (16 i16) of w (32 u8) and x (32 i8); exact while none passes 32767."""
    return _call(builder, "llvm.x86.avx2.pmadd.ub.sw", ir.VectorType(_I16, 16), w, x)


def _widened(builder: ir.IRBuilder, pairs: ir.Value) -> ir.Value:
    """Sums of two neighbours (8 i32) of 16 i16."""
    ones = ir.Constant(pairs.type, [1] * 16)
    return _call(builder, "llvm.x86.avx2.pmadd.wd", ir.VectorType(_I32, 8), pairs, ones)


def _join(builder: ir.IRBuilder, low: ir.Value, high: ir.Value) -> ir.Value:
    n = 2 * low.type.count
    return builder.shuffle_vector(low, high, ir.Constant(ir.VectorType(_I32, n), [*range(n)]))


def dot_nibbles(builder: ir.IRBuilder, acc: ir.Value, w: ir.Value, x: ir.Value) -> ir.Value:
    """acc (32 i16) += products of w (64 bytes, 0..15) and x (64 i8), added by twos."""
    parts = zip(_halves(builder, w), _halves(builder, x), strict=True)
    return builder.add(acc, _join(builder, *(_pairs(builder, b, c) for b, c in parts)))


def add_pairs(builder: ir.IRBuilder, acc: ir.Value, sums: ir.Value) -> ir.Value:
    """acc (16 i32) += sums (32 i16) by twos."""
    return builder.add(acc, _join(builder, *(_widened(builder, half) for half in _halves(builder, sums))))


def dot_bytes(builder: ir.IRBuilder, acc: ir.Value, w: ir.Value, x: ir.Value) -> ir.Value:
    """acc (16 i32) += dot of w and x (both 64 i8): |w| times x with the sign of w, since one side must be unsigned."""
    sums = []
    for b, c in zip(_halves(builder, w), _halves(builder, x), strict=True):
        magnitude = _call(builder, "llvm.abs.v32i8", b.type, b, ir.Constant(ir.IntType(1), 0))
        signed = _call(builder, "llvm.x86.avx2.psign.b", b.type, c, b)
        sums.append(_widened(builder, _pairs(builder, magnitude, signed)))
    return builder.add(acc, _join(builder, *sums))


def widen(builder: ir.IRBuilder, half: ir.Value) -> ir.Value:
    """16-bit lanes holding f16 to f32."""
    n = half.type.count
    return builder.fpext(builder.bitcast(half, ir.VectorType(ir.HalfType(), n)), ir.VectorType(ir.FloatType(), n))


def narrow(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """f32 to 16-bit lanes holding f16, to nearest even."""
    n = value.type.count
    return builder.bitcast(builder.fptrunc(value, ir.VectorType(ir.HalfType(), n)), ir.VectorType(_I16, n))


def fma(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    """a * b + c, rounded once."""
    return _call(builder, f"llvm.fma.v{a.type.count}f32", a.type, a, b, c)
