"""Formats with a half-precision scale for every GROUP inputs of an output: how codes and scales are chosen and kept.

    scales of block b:  | inputs 0..GROUP-1: 16 outputs f16 | the next GROUP inputs: 16 outputs f16 | ...

A weight is code * scale. A scale may be negative, so that the largest weight of a group, of either sign, can take the
lowest code, which lies one further from 0 than the highest. It is not simply largest / lowest: for a dozen divisors the
codes are tried, the best scale for those codes is their least-squares one, and the divisor with the smallest squared
error wins. Codes chosen in another way are handed to `store`.

A format file adds how codes lie in bytes, and the loop that reads them. Activations have a scale for every 32 inputs in
any case, so a coarser GROUP saves bytes, not arithmetic. Left out: a zero point for each group (16 bits a group more).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from glmcpu.errors import UsageError
from glmcpu.formats import ROWS
from glmcpu.formats._blocks import GROUP, blocks, groups, pad
from glmcpu.formats._tiles import grain
from glmcpu.kernels.quantize_rows import quantize_rows
from glmcpu.simd.kernel import kernel
from glmcpu.simd.operation import Operation
from glmcpu.simd.program import Program
from glmcpu.simd.vector import (
    float_of_half,
    fma,
    half_bits,
    load,
    maximum,
    mul,
    reduce_add,
    reduce_max,
    round_within,
    splat,
    store_codes,
    sub,
)

_HALF_MAX = 65504.0


@dataclass(frozen=True)
class Grouped:
    """The functions of such a format.

    group      inputs for each scale: 32, or twice that, and so on
    codes      the lowest and the highest code, -8 and 7 for four bits
    place      kernel (codes as stored, codes (o, I) i8): writes the first from the second
    numbers    (NumPy or torch, codes of n rows as stored) -> whole numbers (n, I filled up) i8
    multiply   the operation that `matmul` adds; told that a scale is for 32 << shift inputs
    """

    group: int
    codes: tuple[int, int]
    place: Callable[[NDArray[np.uint8], NDArray[np.int8]], None]
    numbers: Callable[[Any, Any], Any]
    multiply: Operation

    @property
    def _vectors(self) -> int:
        """Of 64 bytes, for 32 inputs of 16 outputs: as many as a code has bits."""
        return self.codes[1].bit_length() + 1

    def layout(self, O: int, I: int) -> dict[str, tuple[tuple[int, ...], type[np.generic]]]:
        """codes (blocks, bits * I/32, 16, 4) u8, scales (blocks, I/GROUP, 16) f16, both divisions rounded up."""
        return {
            "codes": ((blocks(O), self._vectors * groups(I), ROWS, 4), np.uint8),
            "scales": ((blocks(O), -(-I // self.group), ROWS), np.float16),
        }

    def pack(self, weight: NDArray[np.float32], scale: NDArray[np.float32] | None = None) -> dict[str, NDArray[Any]]:
        """Quantizes weight (o, I); a row `scale` that a checkpoint's codes were made with is tried first.

        Where the format has these codes that is exact.
        """
        padded, shapes = pad(weight, ROWS, self.group), self.layout(*weight.shape)
        given = np.zeros(len(padded), np.float32)
        if scale is not None:
            given[: len(scale)] = scale
        stored, scales = np.empty(*shapes["codes"]), np.empty(*shapes["scales"])
        codes = np.empty(padded.shape, np.int8)
        _choose_parallel(codes, scales.view(np.uint16), padded, given, self.group, *map(np.float32, self.codes))
        self.place(stored, codes)
        return {"codes": stored, "scales": scales}

    def store(self, codes: NDArray[np.int8], scales: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """What `pack` returns, for weights code * scale: codes (o, I) i8, scales (o, I/GROUP, rounded up) f32.

        Scales are rounded to half precision, so those that are halves stay. Raises UsageError for other shapes, for
        codes that the format does not have, and for scales that half precision cannot hold.
        """
        self._check(codes, scales)
        o, I = codes.shape
        shapes = self.layout(o, I)
        filled = np.zeros((blocks(o) * ROWS, groups(I) * GROUP), np.int8)
        filled[:o, :I] = codes
        lanes = np.zeros((blocks(o) * ROWS, scales.shape[1]), np.float16)
        lanes[:o] = scales
        stored = np.empty(*shapes["codes"])
        self.place(stored, filled)
        by_group = lanes.reshape(blocks(o), ROWS, -1).transpose(0, 2, 1)
        return {"codes": stored, "scales": np.ascontiguousarray(by_group)}

    def decode(self, xp: Any, lanes: Any) -> Any:
        """Rows of codes, and of scales (n, I/GROUP), which are handed out to every 32 inputs."""
        numbers, scales = self.numbers(xp, lanes["codes"]), lanes["scales"]
        n, S, G = len(scales), scales.shape[1], numbers.shape[1] // GROUP
        by_32 = xp.broadcast_to(scales[:, :, None], (n, S, self.group // GROUP)).reshape(n, -1, 1)[:, :G]
        return (numbers.reshape(n, G, GROUP) * by_32).reshape(n, -1)

    def matmul(
        self, program: Program, out: NDArray[np.float32], x: NDArray[np.float32], arrays: Any, bias: NDArray[np.float32]
    ) -> None:
        """out (T, O) = x (T, I) @ weight.T + bias, x quantized to int8 by groups of 32."""
        quantized, G, O = quantize_rows(program, x, self.codes[0]), groups(x.shape[1]), out.shape[1]
        shift = (self.group // GROUP).bit_length() - 1
        arguments = (out, arrays["codes"], arrays["scales"], *quantized, bias, len(x), G, O, shift)
        program.add(self.multiply, blocks(O), grain(64 * self._vectors * G), *arguments)

    def _check(self, codes: NDArray[np.int8], scales: NDArray[np.float32]) -> None:
        """Raises UsageError for what `store` cannot keep."""
        if codes.dtype != np.int8 or codes.ndim != 2 or scales.shape != (len(codes), -(-codes.shape[1] // self.group)):
            raise UsageError(
                f"codes {codes.dtype} {codes.shape} and scales {scales.shape} do not belong together; expected codes "
                f"int8 (o, I) and scales (o, I/{self.group}, rounded up); give a scale for every {self.group} inputs"
            )
        lowest, highest = self.codes
        least, most = int(codes.min(initial=0)), int(codes.max(initial=0))
        if least < lowest or most > highest:
            raise UsageError(f"codes {least}..{most}: expected {lowest}..{highest}; clip them, or use more bits")
        fits = np.abs(scales) <= _HALF_MAX
        if not fits.all():
            raise UsageError(
                f"a scale of {scales[~fits][0]}: half precision holds at most {_HALF_MAX:,.0f}; look for what is wrong "
                "with the weights or their statistics"
            )


# The group's largest weight divided by so many sixteenths of the lowest code is tried as the scale.
_SIXTEENTHS = np.array([16, 17, 18, 15, 14, 19, 20, 13, -16, -15, -17, 12], np.float32)


@kernel()
def _try_scale(weight, begin, end, inverse, lowest, highest):
    """(sum w*q, sum q*q) for the codes q that the scale 1 / inverse gives the weights begin..end."""
    inverse, wq, qq = splat(inverse), splat(np.float32(0)), splat(np.float32(0))
    for i in range(begin, end, 32):
        v, w = load(weight, i), load(weight, i + 16)
        p, q = round_within(mul(v, inverse), lowest, highest), round_within(mul(w, inverse), lowest, highest)
        wq, qq = fma(p, v, fma(q, w, wq)), fma(p, p, fma(q, q, qq))
    return reduce_add(wq), reduce_add(qq)


@kernel()
def _best_scale(weight, begin, end, given, lowest, highest):
    """The scale (f32) with the smallest squared error for the weights begin..end; 0 when all are 0."""
    nothing = splat(np.float32(0))
    high, low = nothing, nothing
    for i in range(begin, end, 16):
        w = load(weight, i)
        high, low = maximum(high, w), maximum(low, sub(nothing, w))
    most, least = reduce_max(high), -reduce_max(low)
    largest = most if most > -least else least
    if abs(largest) < np.float32(1e-7):
        return np.float32(0)
    # The error of codes q at their least-squares scale is sum w*w - (sum w*q)**2 / sum q*q.
    best, gain = np.float32(0), np.float32(-1)
    if given != 0:
        wq, qq = _try_scale(weight, begin, end, np.float32(1) / given, lowest, highest)
        best, gain = given, wq * wq / qq
    step = lowest / largest * np.float32(1 / 16)
    for sixteenths in _SIXTEENTHS:
        wq, qq = _try_scale(weight, begin, end, step * sixteenths, lowest, highest)
        if wq * wq > gain * qq * np.float32(1.000001):
            best, gain = wq / qq, wq * wq / qq
    return best


@kernel(parallel=True)
def _choose_parallel(codes, scales, weight, given, group, lowest, highest):
    for b in prange(scales.shape[0]):
        for row in range(b * 16, b * 16 + 16):
            values, row_codes = weight[row], codes[row]
            for g in range(scales.shape[1]):
                begin, end, place = g * group, (g + 1) * group, scales[b, g]
                place[row % 16] = half_bits(_best_scale(values, begin, end, given[row], lowest, highest))
                scale = float_of_half(place[row % 16])
                inverse = splat(np.float32(1) / scale if scale != 0 else np.float32(0))
                for i in range(begin, end, 16):
                    store_codes(row_codes, i, round_within(mul(load(values, i), inverse), lowest, highest))
