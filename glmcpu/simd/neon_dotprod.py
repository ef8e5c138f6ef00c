"""arm64 with the dot product of bytes (Armv8.2 and later, every Apple silicon): four sdot for each 64 bytes.

sdot multiplies signed by signed bytes and adds by fours into int32: exact, so nothing has to be added to the weights.
f16 is converted in hardware on every arm64.
"""

from llvmlite import ir
from numba.core import cgutils

FEATURES = ("dotprod",)
CPU = ""  # LLVM compiles for the CPU it finds; isa.py adds what it does not see
CPU_FEATURES = ""
OFFSET = 0
NIBBLE_BITS = 32
TILE = 4
UNROLLED = True

_I8, _I16, _I32 = ir.IntType(8), ir.IntType(16), ir.IntType(32)


def _quarters(builder: ir.IRBuilder, v: ir.Value) -> list[ir.Value]:
    n = v.type.count // 4
    index = ir.VectorType(_I32, n)
    return [builder.shuffle_vector(v, v, ir.Constant(index, [*range(i * n, i * n + n)])) for i in range(4)]


def _join(builder: ir.IRBuilder, low: ir.Value, high: ir.Value) -> ir.Value:
    n = 2 * low.type.count
    return builder.shuffle_vector(low, high, ir.Constant(ir.VectorType(_I32, n), [*range(n)]))


def _dot(builder: ir.IRBuilder, acc: ir.Value, w: ir.Value, x: ir.Value) -> ir.Value:
    """acc (16 i32) += dot of w and x (both 64 i8) by fours."""
    four, bytes16 = ir.VectorType(_I32, 4), ir.VectorType(_I8, 16)
    kind = ir.FunctionType(four, [four, bytes16, bytes16])
    sdot = cgutils.get_or_insert_function(builder.module, kind, "llvm.aarch64.neon.sdot.v4i32.v16i8")
    parts = zip(_quarters(builder, acc), _quarters(builder, w), _quarters(builder, x), strict=True)
    a, b, c, d = (builder.call(sdot, part) for part in parts)
    return _join(builder, _join(builder, a, b), _join(builder, c, d))


dot_nibbles = dot_bytes = _dot


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
    kind = ir.FunctionType(a.type, [a.type] * 3)
    name = f"llvm.fma.v{a.type.count}f32"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [a, b, c])
