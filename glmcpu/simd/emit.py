"""The vector types of kernels, and the LLVM instructions that words are made of.

A `Vec` is a Numba type whose values are LLVM vectors in registers. The `emit_...` functions add instructions to a
function being compiled and return the value they compute; vector.py and tile.py make words of them.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.extending import register_model

from glmcpu.simd.isa import chosen as isa

LANES = 16

_SHIFT, _SHIFT_BITS = 12582912.0, 0x4B400000  # 1.5 * 2**23, and its bits

I8, I16, I32, I64 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)


class Vec(types.Type):  # type: ignore[misc]
    """The Numba type of an LLVM vector of n elements."""

    def __init__(self, element: ir.Type, n: int) -> None:
        self.ir = ir.VectorType(element, n)
        super().__init__(name=f"Vec({element} x {n})")


@register_model(Vec)
class _VecModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Vec) -> None:
        super().__init__(manager, kind, kind.ir)


bytes64, i16x32, i32x16, f32x16 = Vec(I8, 64), Vec(I16, 32), Vec(I32, LANES), Vec(ir.FloatType(), LANES)


def constant(kind: ir.VectorType, value: float) -> ir.Constant:
    """The same value in every lane."""
    return ir.Constant(kind, [value] * kind.count)


def call(builder: ir.IRBuilder, name: str, result: ir.Type, *args: ir.Value) -> ir.Value:
    """Calls an LLVM intrinsic by its full name."""
    kind = ir.FunctionType(result, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


def emit_splat(builder: ir.IRBuilder, scalar: ir.Value, n: int = LANES) -> ir.Value:
    """A scalar in every lane."""
    kind = ir.VectorType(scalar.type, n)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(I32, 0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(I32, n), [0] * n))


def address(context: Any, builder: ir.IRBuilder, array_type: Any, array: ir.Value, index: ir.Value) -> ir.Value:
    """Pointer to element `index` of a flat array."""
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [index])


def emit_load(builder: ir.IRBuilder, pointer: ir.Value, kind: ir.Type) -> ir.Value:
    """Loads `kind` from any address: nothing is promised about alignment."""
    value = builder.load(builder.bitcast(pointer, kind.as_pointer()))
    value.align = 1
    return value


def emit_store(builder: ir.IRBuilder, pointer: ir.Value, value: ir.Value) -> None:
    """Stores to any address."""
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer())).align = 1


def emit_load_f32(builder: ir.IRBuilder, pointer: ir.Value, dtype: Any) -> ir.Value:
    """16 floats from memory that holds float32, float16 (as uint16) or int8."""
    if dtype == types.int8:
        codes = emit_load(builder, pointer, ir.VectorType(I8, LANES))
        return builder.sitofp(builder.sext(codes, ir.VectorType(I32, LANES)), f32x16.ir)
    if dtype == types.uint16:
        return isa.widen(builder, emit_load(builder, pointer, ir.VectorType(I16, LANES)))
    return emit_load(builder, pointer, f32x16.ir)


def emit_rounded(builder: ir.IRBuilder, value: ir.Value) -> tuple[ir.Value, ir.Value]:
    """16 floats between -2**22 and 2**22 rounded to nearest even: (as floats, as int32). Others give any numbers.

    Added to 1.5 * 2**23 a float has no room for fractions and ends in the bits of the whole number. LLVM's own
    conversion that is defined for every float goes lane by lane on x86, a hundred instructions.
    """
    shifted = builder.fadd(value, constant(f32x16.ir, _SHIFT))
    whole = builder.sub(builder.bitcast(shifted, i32x16.ir), constant(i32x16.ir, _SHIFT_BITS))
    return builder.fsub(shifted, constant(f32x16.ir, _SHIFT)), whole


def emit_narrowed(builder: ir.IRBuilder, value: ir.Value, dtype: Any) -> ir.Value:
    """16 floats as memory of float32, float16 (as uint16) or int8 holds them: int8 to nearest even, its low eight bits.

    Infinity and NaN become 0 in int8, and numbers beyond 2**22 anything.
    """
    if dtype == types.int8:
        _, whole = emit_rounded(builder, value)
        return builder.trunc(whole, ir.VectorType(I8, LANES))
    return isa.narrow(builder, value) if dtype == types.uint16 else value


def emit_store_f32(builder: ir.IRBuilder, pointer: ir.Value, value: ir.Value, dtype: Any) -> None:
    """16 floats to memory of such a dtype."""
    emit_store(builder, pointer, emit_narrowed(builder, value, dtype))


emit_fma: Callable[..., ir.Value] = isa.fma
"""(builder, a, b, c): a * b + c; rounded once, but on the portable ISA."""


def emit_masked_store(builder: ir.IRBuilder, pointer: ir.Value, value: ir.Value, n: ir.Value) -> None:
    """Stores the first n lanes of 16 floats; memory beyond them is not touched."""
    pointer = builder.bitcast(pointer, value.type.as_pointer())
    mask = emit_lanes_below(builder, n)
    kind = ir.FunctionType(ir.VoidType(), [value.type, pointer.type, I32, mask.type])
    masked = cgutils.get_or_insert_function(builder.module, kind, "llvm.masked.store.v16f32.p0")
    builder.call(masked, [value, pointer, ir.Constant(I32, 1), mask])


def emit_lanes_below(builder: ir.IRBuilder, n: ir.Value) -> ir.Value:
    """A mask of the first n lanes."""
    index = ir.VectorType(I64, LANES)
    return builder.icmp_signed("<", ir.Constant(index, [*range(LANES)]), emit_splat(builder, n))


def emit_maximum(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    """The larger of each pair; NaN if either is."""
    larger = builder.select(builder.fcmp_ordered(">", a, b), a, b)
    return builder.select(builder.fcmp_unordered("uno", a, a), a, larger)


def emit_by_halves(builder: ir.IRBuilder, v: ir.Value, combine: Callable[[ir.Value, ir.Value], ir.Value]) -> ir.Value:
    """One value from all lanes: (0..7 with 8..15), then quarters and so on."""
    while (n := v.type.count) > 1:
        undefined = ir.Constant(v.type, ir.Undefined)
        halves = [
            builder.shuffle_vector(v, undefined, ir.Constant(ir.VectorType(I32, n // 2), [*range(i, i + n // 2)]))
            for i in (0, n // 2)
        ]
        v = combine(*halves)
    return builder.extract_element(v, ir.Constant(I32, 0))
