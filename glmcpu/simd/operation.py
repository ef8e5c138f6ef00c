"""`@operation`: a step of a forward pass as a machine-code function that a thread of the team calls by its address.

    @operation
    def scaled(a, worker, begin, end):          a      the arguments, as 64-bit slots: addresses, whole numbers, floats
        _scaled_range(floats(a, 0), floats(a, 1), number(a, 2), begin, end)

It does items begin..end of its work, as thread `worker` of the team (for scratch memory of its own). All operations
have this one signature, so a program (program.py) is a table of addresses and needs no compilation; the words below
give a slot its meaning again. An operation is compiled when its address is first asked for, and kept like a kernel.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.ccallback import CFunc
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from glmcpu.simd.emit import I64, address
from glmcpu.simd.kernel import keep

_SLOTS = types.CPointer(types.int64)
_SIGNATURE = ((_SLOTS, types.int64, types.int64, types.int64), types.void)
_ENDLESS = 1 << 60  # views carry no length: kernels are told the sizes


class Operation:
    """A compiled step of a program."""

    def __init__(self, function: Callable[..., None]) -> None:
        self.function = function
        self.cache_hits = 0

    @cached_property
    def address(self) -> int:
        """Where its machine code lies; compiles it, or loads it from disk, the first time."""
        options = {"nopython": True, "boundscheck": False, "error_model": "numpy"}
        self._compiled = CFunc(self.function, _SIGNATURE, locals={}, options=options)
        keep(self._compiled, self.function)
        self._compiled.compile()
        self.cache_hits = self._compiled.cache_hits
        return self._compiled.address  # type: ignore[return-value]


def operation(function: Callable[..., None]) -> Operation:
    """Makes an operation of function(a, worker, begin, end)."""
    return Operation(function)


def _view(dtype: types.Type, doc: str) -> Any:
    array = types.Array(dtype, 1, "C")

    def word(context: Any, a: Any, i: Any) -> Any:
        def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            data = builder.inttoptr(_slot(builder, *args), context.get_data_type(dtype).as_pointer())
            return _flat(context, builder, array, data)

        return array(_SLOTS, types.int64), emit

    word.__doc__ = doc
    return intrinsic(word)


floats = _view(types.float32, "The flat float32 array at the address in slot i.")
halves = _view(types.uint16, "The flat float16 array (as uint16) at the address in slot i.")
unsigned_bytes = _view(types.uint8, "The flat uint8 array at the address in slot i.")
signed_bytes = _view(types.int8, "The flat int8 array at the address in slot i.")
int32s = _view(types.int32, "The flat int32 array at the address in slot i.")
int64s = _view(types.int64, "The flat int64 array at the address in slot i.")


@intrinsic
def tail(context: Any, array: Any, i: Any) -> Any:
    """A flat array from element i on."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return _flat(context, builder, array, address(context, builder, signature.args[0], *args))

    return array(array, types.int64), emit


@intrinsic
def number(context: Any, a: Any, i: Any) -> Any:
    """The float32 in slot i."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        bits = builder.trunc(_slot(builder, *args), ir.IntType(32))
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(_SLOTS, types.int64), emit


def _flat(context: Any, builder: ir.IRBuilder, array: types.Array, data: ir.Value) -> ir.Value:
    """An array that begins at a pointer."""
    size = context.get_abi_sizeof(context.get_data_type(array.dtype))
    view = context.make_array(array)(context, builder)
    shape, stride = ir.Constant(I64, _ENDLESS), ir.Constant(I64, size)
    populate_array(view, data=data, shape=[shape], strides=[stride], itemsize=stride, meminfo=None)
    return view._getvalue()


def _slot(builder: ir.IRBuilder, slots: ir.Value, i: ir.Value) -> ir.Value:
    return builder.load(builder.gep(builder.bitcast(slots, I64.as_pointer()), [i]))
