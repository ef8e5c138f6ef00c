"""Register tiles: n vectors of 16 lanes, one for each of n tokens. The inner loops of every matrix product.

A weight vector holds 16 outputs; a token contributes one number (or four bytes), repeated over the lanes. So one load
of weights serves n tokens, nothing is ever summed across lanes, and a token's result is the same whatever n is.

    acc = zeros(4)                                 n registers of 0.0; n is a constant, kernels are compiled for each
    n = tokens(acc)                                n again
    ints = tile_offsets(acc, x, i, stride)         as many of int32: ints[t] = x[i + t*stride] in every lane
    acc = tile_fma(acc, w, x, i, stride)           acc[t] += w * x[i + t*stride]
    ints = tile_dot_bytes(ints, w, x, i, stride)   ints[t] += by fours, 64 bytes w * the 4 bytes x[i + t*stride ..]
    sums = tile_sums(ints)                         room for the same with nibbles, 8 times at most:
    sums = tile_dot_nibbles(sums, w, x, i, stride)
    ints = tile_total(sums, ints)
    acc = tile_scaled(acc, ints, w, x, i, stride)  acc[t] += ints[t] * (w * x[i + t*stride])
    acc = tile_fma_rows(acc, w, i, stride, x)      acc[t] += w[i + t*stride ..] * x: one token, n vectors
    acc = tile_load(acc, x, i, stride)             acc[t] = x[i + t*stride ..]
    tile_store(out, i, stride, acc, scale, bias, n)    out[i + t*stride ..] = acc[t] * scale + bias, first n lanes
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model

from glmcpu.simd.emit import (
    I32,
    I64,
    LANES,
    Vec,
    address,
    bytes64,
    emit_fma,
    emit_load,
    emit_load_f32,
    emit_masked_store,
    emit_splat,
    emit_store,
    f32x16,
    i16x32,
    i32x16,
)
from glmcpu.simd.isa import chosen as isa

TILE: int = isa.TILE
OFFSET: int = isa.OFFSET


class Tile(types.Type):  # type: ignore[misc]
    """The Numba type of n vectors."""

    def __init__(self, vector: Vec, n: int) -> None:
        self.n, self.ir = n, ir.ArrayType(vector.ir, n)
        super().__init__(name=f"Tile({vector.name} x {n})")


@register_model(Tile)
class _TileModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Tile) -> None:
        super().__init__(manager, kind, kind.ir)


@intrinsic
def zeros(context: Any, n: Any) -> Any:
    """n vectors of 0.0; n must be a constant."""
    if not isinstance(n, types.IntegerLiteral):
        return None
    tile = Tile(f32x16, n.literal_value)
    return tile(n), lambda context, builder, signature, args: ir.Constant(tile.ir, None)


@intrinsic
def tokens(context: Any, tile: Any) -> Any:
    """How many vectors a tile has, as a constant."""
    return types.intp(tile), lambda context, builder, signature, args: ir.Constant(I64, tile.n)


@intrinsic
def tile_offsets(context: Any, like: Any, x: Any, index: Any, stride: Any) -> Any:
    """tile[t] = x[index + t*stride] (int32) in every lane, for as many t as `like` has."""
    tile = Tile(i32x16, like.n)

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        _, x, index, stride = args
        pointer = address(context, builder, signature.args[1], x, index)
        result = ir.Constant(tile.ir, ir.Undefined)
        for t in range(tile.n):
            value = emit_splat(builder, builder.load(_at(builder, pointer, stride, t)))
            result = builder.insert_value(result, value, t)
        return result

    return tile(like, x, types.intp, types.intp), emit


@intrinsic
def tile_fma(context: Any, acc: Any, w: Any, x: Any, index: Any, stride: Any) -> Any:
    """acc[t] += w * x[index + t*stride], x float32."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        acc, w, x, index, stride = args
        pointer = address(context, builder, signature.args[2], x, index)
        for t in range(signature.args[0].n):
            value = emit_splat(builder, builder.load(_at(builder, pointer, stride, t)))
            acc = builder.insert_value(acc, emit_fma(builder, w, value, builder.extract_value(acc, t)), t)
        return acc

    return acc(acc, f32x16, x, types.intp, types.intp), emit


@intrinsic
def tile_fma_rows(context: Any, acc: Any, w: Any, index: Any, stride: Any, x: Any) -> Any:
    """acc[t] += (16 floats of w from index + t*stride on) * x; w as in `load`."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        acc, w, index, stride, x = args
        pointer, factor = address(context, builder, signature.args[1], w, index), emit_splat(builder, x)
        for t in range(signature.args[0].n):
            row = emit_load_f32(builder, _at(builder, pointer, stride, t), signature.args[1].dtype)
            acc = builder.insert_value(acc, emit_fma(builder, row, factor, builder.extract_value(acc, t)), t)
        return acc

    return acc(acc, w, types.intp, types.intp, types.float32), emit


@intrinsic
def tile_load(context: Any, like: Any, x: Any, index: Any, stride: Any) -> Any:
    """tile[t] = 16 floats of x from index + t*stride on, for as many t as `like` has."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        tile, x, index, stride = args
        pointer = address(context, builder, signature.args[1], x, index)
        for t in range(signature.args[0].n):
            row = emit_load_f32(builder, _at(builder, pointer, stride, t), signature.args[1].dtype)
            tile = builder.insert_value(tile, row, t)
        return tile

    return like(like, x, types.intp, types.intp), emit


@intrinsic
def steps(context: Any, n: Any) -> Any:
    """n, for the loop over the dots of a group; where registers are few it is hidden that n is a constant.

    LLVM would unroll the loop and unpack all weights first, only to store them away again.
    """

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        if isa.UNROLLED:
            return args[0]
        hidden = ir.InlineAsm(ir.FunctionType(I64, [I64]), "", "=r,0")
        return builder.call(hidden, args)

    return types.intp(types.intp), emit


@intrinsic
def tile_sums(context: Any, ints: Any) -> Any:
    """What nibble products of up to 8 dots are added to before they join `ints`; see NIBBLE_BITS in portable.py."""
    if isa.NIBBLE_BITS == 32:
        return ints(ints), lambda context, builder, signature, args: args[0]
    sums = Tile(i16x32, ints.n)
    return sums(ints), lambda context, builder, signature, args: ir.Constant(sums.ir, None)


@intrinsic
def tile_total(context: Any, sums: Any, ints: Any) -> Any:
    """`ints` (int32) and the sums that began as tile_sums(ints)."""
    if isa.NIBBLE_BITS == 32:
        return ints(sums, ints), lambda context, builder, signature, args: args[0]

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        sums, ints = args
        for t in range(signature.args[1].n):
            whole = isa.add_pairs(builder, builder.extract_value(ints, t), builder.extract_value(sums, t))
            ints = builder.insert_value(ints, whole, t)
        return ints

    return ints(sums, ints), emit


def _dot_word(dot: Callable[..., ir.Value], doc: str) -> Any:
    def word(context: Any, acc: Any, w: Any, x: Any, index: Any, stride: Any) -> Any:
        def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            acc, w, x, index, stride = args
            pointer = address(context, builder, signature.args[2], x, index)
            for t in range(signature.args[0].n):
                four = emit_load(builder, _at(builder, pointer, stride, t), I32)
                activations = builder.bitcast(emit_splat(builder, four), bytes64.ir)
                acc = builder.insert_value(acc, dot(builder, builder.extract_value(acc, t), w, activations), t)
            return acc

        return acc(acc, bytes64, x, types.intp, types.intp), emit

    word.__name__, word.__doc__ = dot.__name__, doc
    return intrinsic(word)


tile_dot_nibbles = _dot_word(
    isa.dot_nibbles, "sums[t] += by fours, 64 bytes w (0..15) times the 4 int8 at x[index + t*stride], repeated."
)
tile_dot_bytes = _dot_word(
    isa.dot_bytes,
    "The same for w in -128..127, plus OFFSET * (sum of the x): start acc at tile_offsets of -OFFSET * the sums.",
)


@intrinsic
def tile_scaled(context: Any, acc: Any, ints: Any, w: Any, x: Any, index: Any, stride: Any) -> Any:
    """acc[t] += float(ints[t]) * (w * x[index + t*stride]), x float32."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        acc, ints, w, x, index, stride = args
        pointer = address(context, builder, signature.args[3], x, index)
        for t in range(signature.args[0].n):
            scale = builder.fmul(w, emit_splat(builder, builder.load(_at(builder, pointer, stride, t))))
            value = builder.sitofp(builder.extract_value(ints, t), f32x16.ir)
            acc = builder.insert_value(acc, emit_fma(builder, value, scale, builder.extract_value(acc, t)), t)
        return acc

    return acc(acc, ints, f32x16, x, types.intp, types.intp), emit


@intrinsic
def tile_store(context: Any, out: Any, index: Any, stride: Any, acc: Any, scale: Any, bias: Any, n: Any) -> Any:
    """out[index + t*stride ..] = acc[t] * scale + bias, the first n of 16 lanes; out is float32."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        out, index, stride, acc, scale, bias, n = args
        pointer = address(context, builder, signature.args[0], out, index)
        whole = builder.icmp_signed(">=", n, ir.Constant(n.type, LANES))
        for t in range(signature.args[3].n):
            value = emit_fma(builder, builder.extract_value(acc, t), scale, bias)
            target = _at(builder, pointer, stride, t)
            with builder.if_else(whole) as (then, otherwise):
                with then:
                    emit_store(builder, target, value)
                with otherwise:
                    emit_masked_store(builder, target, value, n)
        return context.get_dummy_value()

    return types.void(out, types.intp, types.intp, acc, f32x16, f32x16, types.intp), emit


def _at(builder: ir.IRBuilder, pointer: ir.Value, stride: ir.Value, t: int) -> ir.Value:
    """Pointer to the t-th token's element."""
    return builder.gep(pointer, [builder.mul(stride, ir.Constant(stride.type, t))])
