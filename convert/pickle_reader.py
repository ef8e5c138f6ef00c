"""The pickles inside torch checkpoints, read by a machine that can only build tables of tensors.

A pickle is a program. Python's own unpickler runs whatever it names; this one knows the thirty instructions that
torch.save emits for a state dict (protocol 2), and the names of torch_objects.GLOBALS. Everything else is refused by
its name, and there is no looser path.

The memo is a dict, so an index of 2**32 costs one entry; nothing here walks a value recursively, so one nested deeply
or holding itself does no harm. Tensors are NOT yet known to lie inside their storage: torch_objects.bind sees to that.
"""

import struct
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from glmcpu import limits
from glmcpu.errors import DataError, printable

from . import torch_objects
from .torch_objects import GLOBALS, RefusalError, kind

_STOP = ord(".")
_GLOBAL_BYTES = 200
_INTEGER_BYTES = 16


def read_pickle(data: bytes, begin: int, name: str) -> tuple[Any, int]:
    """The value of the pickle at data[begin:], and the index after its STOP.

    Values are None, bool, int, str, tuples, lists, dicts with str keys, StorageRef and TensorRef. Raises DataError,
    beginning with `name`, for any instruction, global or argument that a state dict does not need, and for more than
    limits.PICKLE_... allows.
    """
    machine = _Machine(data, begin)
    opcode_at = begin
    try:
        if data[begin : begin + 1] != b"\x80":
            raise RefusalError("a pickle that does not begin with its protocol")
        for _ in range(limits.PICKLE_OPCODES):
            opcode_at = machine.at
            opcode = machine.take(1)[0]
            if opcode == _STOP:
                return machine.result(), machine.at
            if opcode not in _OPCODES:
                raise RefusalError(f"unsupported pickle opcode 0x{opcode:02x}")
            _OPCODES[opcode](machine)
            if len(machine.stack) > limits.PICKLE_STACK:
                raise RefusalError(f"pickle too large: more than {limits.PICKLE_STACK:,} values on its stack")
        raise RefusalError(f"pickle too large: more than {limits.PICKLE_OPCODES:,} opcodes")
    except RefusalError as error:
        raise DataError(f"{name}: {error} at byte {opcode_at:,}; expected a dict of tensors by torch.save") from error


class _Machine:
    """The stack machine: `stack` of values, `marks` (heights of the stack), `memo`, and the next byte `at`."""

    def __init__(self, data: bytes, begin: int) -> None:
        self.data, self.at = data, begin
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def take(self, n: int) -> bytes:
        """The next n bytes of the program."""
        left = len(self.data) - self.at
        if n > left:
            raise RefusalError(f"pickle ends early ({n:,} bytes expected, {left:,} left)")
        self.at += n
        return self.data[self.at - n : self.at]

    def unsigned(self, n: int) -> int:
        return int.from_bytes(self.take(n), "little")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise RefusalError("pickle takes a value from an empty stack")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        if not self.marks:
            raise RefusalError("pickle goes back to a mark it never set")
        height = self.marks.pop()
        values = self.stack[height:]
        del self.stack[height:]
        return values

    def top(self) -> Any:
        value = self.pop()
        self.stack.append(value)
        return value

    def result(self) -> Any:
        if self.marks or len(self.stack) != 1:
            raise RefusalError(f"pickle stops with {len(self.stack)} values and {len(self.marks)} marks")
        return self.stack[0]


def _protocol(m: _Machine) -> None:
    version = m.unsigned(1)
    if version != 2:
        raise RefusalError(f"pickle protocol {version} (only 2 is read)")


def _mark(m: _Machine) -> None:
    if len(m.marks) >= limits.PICKLE_DEPTH:
        raise RefusalError(f"pickle too deep: more than {limits.PICKLE_DEPTH} open marks")
    m.marks.append(len(m.stack))


def _global(m: _Machine) -> None:
    line_end = m.data.find(b"\n", m.at, m.at + _GLOBAL_BYTES)
    name_end = m.data.find(b"\n", line_end + 1, line_end + 1 + _GLOBAL_BYTES)
    if line_end < 0 or name_end < 0:
        raise RefusalError(f"pickle global of more than {_GLOBAL_BYTES} bytes")
    module, name = m.data[m.at : line_end], m.data[line_end + 1 : name_end]
    m.at = name_end + 1
    known = GLOBALS.get((module + b"." + name).decode("utf-8", "backslashreplace"))
    if known is None:
        shown = printable((module + b"." + name).decode("utf-8", "backslashreplace"), 60)
        raise RefusalError(f"refuses pickle global '{shown}'")
    m.push(known)


def _text(m: _Machine) -> None:
    try:
        m.push(m.take(m.unsigned(4)).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RefusalError("pickle text is not UTF-8") from error


def _long(m: _Machine) -> None:
    n = m.unsigned(1)
    if n > _INTEGER_BYTES:
        raise RefusalError(f"pickle integer of {n} bytes (at most {_INTEGER_BYTES} are read)")
    m.push(int.from_bytes(m.take(n), "little", signed=True))


def _put(m: _Machine, index: int) -> None:
    m.memo[index] = m.top()


def _get(m: _Machine, index: int) -> None:
    if index not in m.memo:
        raise RefusalError(f"pickle takes value {index} from its memo before it is there")
    m.push(m.memo[index])


def _tuple(m: _Machine, n: int) -> None:
    values = [m.pop() for _ in range(n)]
    m.push(tuple(reversed(values)))


def _extend_list(m: _Machine, values: list[Any]) -> None:
    target = m.top()
    if not isinstance(target, list):
        raise RefusalError(f"pickle appends to a {kind(target)}")
    target.extend(values)


def _set_items(m: _Machine, flat: list[Any]) -> None:
    target = m.top()
    if not isinstance(target, dict) or len(flat) % 2:
        raise RefusalError(f"pickle sets {len(flat)} keys and values on a {kind(target)}")
    for key, value in zip(flat[::2], flat[1::2], strict=True):
        if not isinstance(key, str) or len(key) > limits.TENSOR_NAME_CHARS:
            raise RefusalError(f"pickle key is not a text of at most {limits.TENSOR_NAME_CHARS} characters")
        if key in target:
            raise RefusalError(f"duplicate name '{printable(key, 80)}'")
        target[key] = value


def _reduce(m: _Machine) -> None:
    args, function = m.pop(), m.pop()
    m.push(torch_objects.call(function, args))


def _build(m: _Machine) -> None:
    """The attributes of an OrderedDict ('_metadata', versions of modules): checked to be a table, then dropped."""
    state, target = m.pop(), m.top()
    if not isinstance(target, OrderedDict) or not isinstance(state, dict):
        raise RefusalError(f"pickle sets attributes of a {kind(target)} from a {kind(state)}")


_OPCODES: dict[int, Callable[[_Machine], None]] = {
    0x80: _protocol,
    ord("("): _mark,
    ord("c"): _global,
    ord("R"): _reduce,
    ord("b"): _build,
    ord("Q"): lambda m: m.push(torch_objects.storage(m.pop())),
    ord("X"): _text,
    0x8A: _long,
    ord("J"): lambda m: m.push(struct.unpack("<i", m.take(4))[0]),
    ord("K"): lambda m: m.push(m.unsigned(1)),
    ord("M"): lambda m: m.push(m.unsigned(2)),
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("}"): lambda m: m.push({}),
    ord("]"): lambda m: m.push([]),
    ord(")"): lambda m: m.push(()),
    ord("t"): lambda m: m.push(tuple(m.pop_to_mark())),
    0x85: lambda m: _tuple(m, 1),
    0x86: lambda m: _tuple(m, 2),
    0x87: lambda m: _tuple(m, 3),
    ord("q"): lambda m: _put(m, m.unsigned(1)),
    ord("r"): lambda m: _put(m, m.unsigned(4)),
    ord("h"): lambda m: _get(m, m.unsigned(1)),
    ord("j"): lambda m: _get(m, m.unsigned(4)),
    ord("a"): lambda m: _extend_list(m, [m.pop()]),
    ord("e"): lambda m: _extend_list(m, m.pop_to_mark()),
    ord("s"): lambda m: _set_items(m, [m.pop(), m.pop()][::-1]),
    ord("u"): lambda m: _set_items(m, m.pop_to_mark()),
}
