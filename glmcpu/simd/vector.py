"""Words for vectors inside Numba kernels: 16 lanes of float32, 16 of int32, 64 bytes.

A word is a small function a kernel calls; it becomes one or a few LLVM instructions on a value in a register.
The width is the same on every CPU: LLVM splits 64 bytes into the registers there are. `Vec` values can be local
variables, cross loops and stand inside a prange; they cannot be stored in Python objects.

    v = load(a, i)            16 values of a flat array from index i; a is float32, or uint16 holding float16
    store(a, i, v)            and back                      load_part / store_part: the first n lanes only
    splat(x)  add sub mul fma maximum  exp  reduce_add reduce_max  first(n, v, x): x in the lanes from n on
    load_bytes(a, i)  low_nibbles high_nibbles              64 bytes; the halves of bytes
    bits(v, shift, mask)  join(a, b)                        parts of bytes, and two parts in one byte
    prefetch(a, i)  prefetch_far(a, i)                      ask for a cache line ahead of time

Numba has no float16 arrays on the CPU, so halves travel as uint16 and only ever exist as float32 in registers.
Left out: fast-math. Sums run in the order the kernel states, so one token's result never depends on its neighbours.
"""

import inspect
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from glmcpu.simd.emit import (
    I8,
    I16,
    I32,
    I64,
    LANES,
    address,
    bytes64,
    call,
    constant,
    emit_by_halves,
    emit_fma,
    emit_lanes_below,
    emit_load,
    emit_load_f32,
    emit_masked_store,
    emit_maximum,
    emit_narrowed,
    emit_rounded,
    emit_splat,
    emit_store,
    emit_store_f32,
    f32x16,
    i32x16,
)
from glmcpu.simd.isa import chosen as isa


def _word(result: Any, *kinds: Any) -> Callable[[Callable[..., ir.Value]], Any]:
    """Makes a word of a function (builder, *values) that emits it, for arguments of these fixed types."""

    def make(emit: Callable[..., ir.Value]) -> Any:
        def typed(context: Any, *_: Any) -> tuple[Any, Callable[..., ir.Value]]:
            return result(*kinds), lambda context, builder, signature, args: emit(builder, *args)

        # Numba reads a word's arity from its signature, where *_ would mean a tuple.
        names = ["context", *list(inspect.signature(emit).parameters)[1:]]
        parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        typed.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        typed.__name__, typed.__doc__ = emit.__name__, emit.__doc__
        return intrinsic(typed)

    return make


# --- words: memory ---


@intrinsic
def load(context: Any, array: Any, index: Any) -> Any:
    """16 floats of a flat float32 array, of a uint16 array that holds float16, or of an int8 array."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return emit_load_f32(builder, address(context, builder, signature.args[0], *args), array.dtype)

    return f32x16(array, types.intp), emit


@intrinsic
def store(context: Any, array: Any, index: Any, value: Any) -> Any:
    """16 floats to a flat float32 array, rounded to float16 in a uint16 array, or to whole numbers in an int8 array."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        emit_store_f32(builder, address(context, builder, signature.args[0], *args[:2]), args[2], array.dtype)
        return context.get_dummy_value()

    return types.void(array, types.intp, f32x16), emit


@intrinsic
def load_part(context: Any, array: Any, index: Any, n: Any) -> Any:
    """The first n of 16 floats of a float32 array, 0 in the other lanes; memory beyond n is not touched."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        pointer = address(context, builder, signature.args[0], *args[:2])
        pointer = builder.bitcast(pointer, f32x16.ir.as_pointer())
        mask, zero = emit_lanes_below(builder, args[2]), constant(f32x16.ir, 0.0)
        kind = ir.FunctionType(f32x16.ir, [pointer.type, I32, mask.type, f32x16.ir])
        masked = cgutils.get_or_insert_function(builder.module, kind, "llvm.masked.load.v16f32.p0")
        return builder.call(masked, [pointer, ir.Constant(I32, 1), mask, zero])

    return f32x16(array, types.intp, types.intp), emit


@intrinsic
def store_part(context: Any, array: Any, index: Any, value: Any, n: Any) -> Any:
    """The first n lanes to a float32 array; memory beyond n is not touched."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        emit_masked_store(builder, address(context, builder, signature.args[0], *args[:2]), args[2], args[3])
        return context.get_dummy_value()

    return types.void(array, types.intp, f32x16, types.intp), emit


@intrinsic
def scatter(context: Any, array: Any, index: Any, stride: Any, value: Any) -> Any:
    """Lane i to element index + i * stride, rounded as `store` does."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        lanes = emit_narrowed(builder, args[3], array.dtype)
        pointer = address(context, builder, signature.args[0], *args[:2])
        for i in range(LANES):
            target = builder.gep(pointer, [builder.mul(args[2], ir.Constant(I64, i))])
            builder.store(builder.extract_element(lanes, ir.Constant(I32, i)), target)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, f32x16), emit


@intrinsic
def load_bytes(context: Any, array: Any, index: Any) -> Any:
    """64 bytes from `index` on."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return emit_load(builder, address(context, builder, signature.args[0], *args), bytes64.ir)

    return bytes64(array, types.intp), emit


def _prefetch(locality: int, doc: str) -> Any:
    def word(context: Any, array: Any, index: Any) -> Any:
        def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            pointer = builder.bitcast(address(context, builder, signature.args[0], *args), I8.as_pointer())
            kind = ir.FunctionType(ir.VoidType(), [pointer.type, I32, I32, I32])
            hint = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
            builder.call(hint, [pointer, *(ir.Constant(I32, n) for n in (0, locality, 1))])  # for reading; data
            return context.get_dummy_value()

        return types.void(array, types.intp), emit

    word.__doc__ = doc
    return intrinsic(word)


prefetch = _prefetch(3, "Asks for the cache line at `index`, which may lie behind the array's end: nothing is read.")
prefetch_far = _prefetch(2, "The same into the second-level cache, for what is needed later.")


@intrinsic
def store_codes(context: Any, array: Any, index: Any, value: Any) -> Any:
    """`store` to an int8 array; infinity and NaN become 0 (the scale beside them tells). Returns the codes' sum."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        codes = emit_narrowed(builder, args[2], array.dtype)
        emit_store(builder, address(context, builder, signature.args[0], *args[:2]), codes)
        return emit_by_halves(builder, builder.sext(codes, i32x16.ir), builder.add)

    return types.int32(array, types.intp, f32x16), emit


# --- words: arithmetic ---


@_word(f32x16, types.float32)
def splat(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """x in all 16 lanes."""
    return emit_splat(builder, x)


@_word(f32x16, f32x16, f32x16)
def add(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    """a + b."""
    return builder.fadd(a, b)


@_word(f32x16, f32x16, f32x16)
def sub(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    """a - b."""
    return builder.fsub(a, b)


@_word(f32x16, f32x16, f32x16)
def mul(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    """a * b."""
    return builder.fmul(a, b)


@_word(f32x16, f32x16, f32x16)
def div(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    """a / b."""
    return builder.fdiv(a, b)


@_word(f32x16, f32x16, f32x16, f32x16)
def fma(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    """a * b + c, rounded once."""
    return emit_fma(builder, a, b, c)


@_word(f32x16, f32x16, f32x16)
def maximum(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    """The larger of each pair; NaN if either is."""
    return emit_maximum(builder, a, b)


@_word(f32x16, f32x16)
def absolute(builder: ir.IRBuilder, a: ir.Value) -> ir.Value:
    """|a|."""
    return call(builder, "llvm.fabs.v16f32", f32x16.ir, a)


@_word(f32x16, types.intp, f32x16, types.float32)
def first(builder: ir.IRBuilder, n: ir.Value, v: ir.Value, x: ir.Value) -> ir.Value:
    """The first n lanes of v, and x in the others."""
    return builder.select(emit_lanes_below(builder, n), v, emit_splat(builder, x))


@_word(types.float32, f32x16)
def reduce_add(builder: ir.IRBuilder, v: ir.Value) -> ir.Value:
    """The sum of the lanes, by halves: (0..7 + 8..15), then quarters and so on."""
    return emit_by_halves(builder, v, builder.fadd)


@_word(types.float32, f32x16)
def reduce_max(builder: ir.IRBuilder, v: ir.Value) -> ir.Value:
    """The largest lane; NaN if any is."""
    return emit_by_halves(builder, v, lambda a, b: emit_maximum(builder, a, b))


@_word(f32x16, f32x16)
def exp(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """e**x to about 2 units in the last place; 0 below -87.3, infinity above 88.7, NaN stays NaN.

    x = k ln 2 + r with |r| <= ln 2 / 2; e**r is a polynomial (Cephes' coefficients), 2**k is an exponent.
    """
    f32, i32 = f32x16.ir, i32x16.ir
    k, whole = emit_rounded(builder, builder.fmul(x, constant(f32, 1.4426950408889634)))
    r = emit_fma(builder, k, constant(f32, -0.693359375), x)
    r = emit_fma(builder, k, constant(f32, 2.12194440e-4), r)
    p = constant(f32, 1.9875691500e-4)
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = emit_fma(builder, p, r, constant(f32, c))
    p = builder.fadd(emit_fma(builder, builder.fmul(r, r), p, r), constant(f32, 1.0))
    # 2**k in two factors: k reaches 128, one exponent does not.
    half = builder.ashr(whole, constant(i32, 1))
    for part in (half, builder.sub(whole, half)):
        power = builder.shl(builder.add(part, constant(i32, 127)), constant(i32, 23))
        p = builder.fmul(p, builder.bitcast(power, f32))
    p = builder.select(builder.fcmp_ordered("<", x, constant(f32, -87.33654)), constant(f32, 0.0), p)
    return builder.select(builder.fcmp_ordered(">", x, constant(f32, 88.72283)), constant(f32, float("inf")), p)


@_word(f32x16, f32x16)
def as_half(builder: ir.IRBuilder, v: ir.Value) -> ir.Value:
    """v rounded to the nearest float16."""
    return isa.widen(builder, isa.narrow(builder, v))


@_word(types.uint16, types.float32)
def half_bits(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """The bits of x rounded to float16."""
    return builder.extract_element(isa.narrow(builder, emit_splat(builder, x)), ir.Constant(I32, 0))


@_word(types.float32, types.uint16)
def float_of_half(builder: ir.IRBuilder, bits: ir.Value) -> ir.Value:
    """The float32 a float16's bits stand for."""
    return builder.extract_element(isa.widen(builder, emit_splat(builder, bits)), ir.Constant(I32, 0))


@_word(f32x16, f32x16, types.float32, types.float32)
def round_within(builder: ir.IRBuilder, v: ir.Value, low: ir.Value, high: ir.Value) -> ir.Value:
    """v rounded to the nearest even integer and held between low and high."""
    rounded = call(builder, "llvm.roundeven.v16f32", f32x16.ir, v)
    rounded = call(builder, "llvm.minnum.v16f32", f32x16.ir, rounded, emit_splat(builder, high))
    return call(builder, "llvm.maxnum.v16f32", f32x16.ir, rounded, emit_splat(builder, low))


@_word(bytes64, bytes64)
def low_nibbles(builder: ir.IRBuilder, v: ir.Value) -> ir.Value:
    """The low four bits of each byte."""
    return builder.and_(v, constant(bytes64.ir, 15))


@_word(bytes64, bytes64)
def high_nibbles(builder: ir.IRBuilder, v: ir.Value) -> ir.Value:
    """The high four bits of each byte; shifted as 16-bit lanes, since x86 has no shift of bytes."""
    words = ir.VectorType(I16, 32)
    shifted = builder.lshr(builder.bitcast(v, words), constant(words, 4))
    return builder.and_(builder.bitcast(shifted, bytes64.ir), constant(bytes64.ir, 15))


@intrinsic
def bits(context: Any, v: Any, shift: Any, mask: Any) -> Any:
    """The bits of `mask` of each byte shifted right; both are constants, and no more than 8 - shift bits are left."""
    if not (isinstance(shift, types.IntegerLiteral) and isinstance(mask, types.IntegerLiteral)):
        return None
    by, kept = shift.literal_value, mask.literal_value
    words = ir.VectorType(I16, 32)

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        # As 16-bit lanes, since x86 has no shift of bytes: what comes from the byte above is not in the mask.
        shifted = builder.lshr(builder.bitcast(args[0], words), constant(words, by))
        return builder.and_(builder.bitcast(shifted, bytes64.ir), constant(bytes64.ir, kept))

    return bytes64(bytes64, shift, mask), emit


@_word(bytes64, bytes64, bytes64)
def join(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    """a | b."""
    return builder.or_(a, b)
