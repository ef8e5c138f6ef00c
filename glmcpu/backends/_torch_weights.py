"""Packed weights on a torch device: they stay as they lie in the file, and become floats when they are multiplied by.

    an array of the file       (blocks, n, 16, ...)        16 outputs side by side
    as it is kept here         (blocks, 16, n, ...)        output by output; on the CPU a view of the mapped file

What the bytes mean is the format's own `decode`, run by torch: a slab of outputs at a time, so that no more than a slab
is ever there as floats. Where torch compiles (CUDA), a slab's decoding is one kernel, and for a single token decoding
and product are one: then a weight is read once, packed, and its floats never exist in memory. Without a compiler the
plain operations do the same.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from glmcpu import formats
from glmcpu.errors import Notice, printable
from glmcpu.formats import ROWS, Weight

_SLAB = {"cpu": 1 << 20}  # weights decoded at once: what stays in a CPU's cache
_LARGE_SLAB = 1 << 25
_SHAPES = 64  # of matrices, times formats

Decode = Callable[[Any, Mapping[str, Tensor]], Tensor]
Arrays = Mapping[str, Tensor]


def tensor_of(array: NDArray[Any], device: torch.device) -> Tensor:
    """The array on the device; on the CPU it is the array's own memory, which nobody writes to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array).to(device)


def keep(weight: Weight, device: torch.device) -> Weight:
    """The weight with tensors for arrays."""
    arrays: Any = {key: _by_output(tensor_of(array, device)) for key, array in weight.arrays.items()}
    bias: Any = tensor_of(weight.bias, device)
    return replace(weight, arrays=arrays, bias=bias)


def _by_output(array: Tensor) -> Tensor:
    turned = array.transpose(1, 2)
    return turned if array.device.type == "cpu" else turned.contiguous()


def rows(weight: Weight, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows `ids` (n,) as (n, I)."""
    arrays: Arrays = weight.arrays
    block, lane = ids // ROWS, ids % ROWS
    return _decoded(_decode(weight), {key: a[block, lane] for key, a in arrays.items()}, dtype)[:, : weight.I]


def slabs(weight: Weight, dtype: torch.dtype, compiled: bool = False) -> Iterator[tuple[slice, Tensor]]:
    """All outputs, some at a time: which they are, and their weights (o, I)."""
    arrays: Arrays = weight.arrays
    blocks, device = -(-weight.O // ROWS), next(iter(arrays.values())).device.type
    step = max(1, _SLAB.get(device, _LARGE_SLAB) // (ROWS * weight.I))
    outputs = _compiled(_outputs, _decode(weight)) if compiled else partial(_outputs, _decode(weight))
    for begin in range(0, blocks, step):
        some = outputs({key: a[begin : begin + step] for key, a in arrays.items()}, dtype)
        first = begin * ROWS
        yield slice(first, first + len(some)), some[: weight.O - first, : weight.I]


def product(x: Tensor, weight: Weight, compiled: bool = False) -> Tensor:
    """x (T, I) @ weight.T + bias: (T, O) in x's precision."""
    bias: Any = weight.bias.to(x.dtype)  # type: ignore[attr-defined]
    if compiled and len(x) == 1:
        arrays: Arrays = weight.arrays
        one = _compiled(_one, _decode(weight), partial(_one_in_slabs, weight))
        return one(x, arrays)[:, : weight.O] + bias
    out = x.new_empty(len(x), weight.O)
    for which, some in slabs(weight, x.dtype, compiled):
        out[:, which] = functional.linear(x, some, bias[which])
    return out


def gradient(grad: Tensor, weight: Weight, compiled: bool = False) -> Tensor:
    """grad (T, O) @ weight: what a product's gradient is to its input, (T, I)."""
    out = grad.new_zeros(len(grad), weight.I)
    for which, some in slabs(weight, grad.dtype, compiled):
        out.addmm_(grad[:, which], some)
    return out


def _decode(weight: Weight) -> Decode:
    return formats.load(weight.format).decode


def _decoded(decode: Decode, lanes: Arrays, dtype: torch.dtype) -> Tensor:
    return decode(torch, {key: a.to(dtype) if a.is_floating_point() else a for key, a in lanes.items()})


def _outputs(decode: Decode, arrays: Arrays, dtype: torch.dtype) -> Tensor:
    """Whole blocks as rows of floats."""
    return _decoded(decode, {key: a.flatten(0, 1) for key, a in arrays.items()}, dtype)


def _one(decode: Decode, x: Tensor, arrays: Arrays) -> Tensor:
    """The product for one token, which a compiler makes a single pass over the packed weights. Sums are float32."""
    weights = _outputs(decode, arrays, torch.float32)[:, : x.shape[1]]
    return (weights * x.float()).sum(1)[None].to(x.dtype)


def _one_in_slabs(weight: Weight, x: Tensor, arrays: Arrays) -> Tensor:
    return torch.cat([functional.linear(x, some) for _, some in slabs(weight, x.dtype)], 1)


class _NoCompilerError(Exception):
    """torch does not compile for this Python at all."""


@cache
def _compiler(function: Callable[..., Tensor], decode: Decode) -> Callable[..., Tensor]:
    """`function` of a format's decode, compiled; it is compiled when it is first called, for each shape."""
    try:
        return torch.compile(partial(function, decode), dynamic=False)  # type: ignore[no-any-return]
    except RuntimeError as error:
        raise _NoCompilerError(error) from error


_plain_only: set[Callable[..., Tensor]] = set()
"""What could not be compiled on this machine."""


def _compiled(
    function: Callable[..., Tensor], decode: Decode, plain: Callable[..., Tensor] | None = None
) -> Callable[..., Tensor]:
    """`function` compiled, and the plain operations where torch finds no compiler."""
    slow = plain or partial(function, decode)

    def run(*arguments: Any) -> Tensor:
        if function not in _plain_only:
            try:
                fast = _compiler(function, decode)
                if torch._dynamo.config.recompile_limit != _SHAPES:  # it is another one in each thread
                    torch._dynamo.config.recompile_limit = _SHAPES
                return fast(*arguments)
            except (torch._dynamo.exc.TorchDynamoException, _NoCompilerError) as error:
                _plain_only.add(function)
                reason = printable(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)
                warnings.warn(f"torch cannot compile here, which is slower: {reason}", Notice, stacklevel=2)
        return slow(*arguments)

    return run
