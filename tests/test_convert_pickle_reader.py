"""Pickles: tables of tensors are read, hostile ones are refused and cost no memory."""

import random
import struct
import tracemalloc

import pytest
from torch_files import Pickler, View, state_dict_pickle

from glmcpu import limits
from glmcpu.convert.pickle_reader import read_pickle
from glmcpu.convert.torch_objects import StorageRef, TensorRef
from glmcpu.errors import DataError

VIEW = View("HalfStorage", "0", 12, 0, (3, 4), (4, 1))
GOOD = state_dict_pickle({"a": VIEW, "b": View("FloatStorage", "1", 70_000, 69_000, (2, 2), (1, 2))}, ordered=True)


def text(value: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value


def storage(
    kind: bytes = b"HalfStorage", key: bytes = text(b"0"), elements: bytes = b"K\x0c", rest: bytes = b""
) -> bytes:
    return b"(" + text(b"storage") + b"ctorch\n" + kind + b"\n" + key + text(b"cpu") + elements + rest + b"tQ"


def tensor(
    storage: bytes = storage(),
    offset: bytes = b"K\0",
    shape: bytes = b"K\x03K\x04\x86",
    stride: bytes = b"K\x04K\x01\x86",
    rest: bytes = b"\x89}",
) -> bytes:
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + offset + shape + stride + rest + b"tR"


def call(name: str) -> bytes:
    return f"c{name}\n".encode() + text(b"touch /tmp/pwned_marker") + b"\x85R."


GLOBALS = {
    "os.system": "os\nsystem",
    "posix.system": "posix\nsystem",
    "builtins.eval": "builtins\neval",
    "__builtin__.eval": "__builtin__\neval",
    "torch.load": "torch\nload",
    "torch._utils._rebuild_tensor": "torch._utils\n_rebuild_tensor",
    "_codecs.encode": "_codecs\nencode",
    "numpy.core.multiarray._reconstruct": "numpy.core.multiarray\n_reconstruct",
    "pkgutil.resolve_name": "pkgutil\nresolve_name",
    "collections.ordereddict": "collections\nordereddict",
    "collections.OrderedDict.__class__": "collections\nOrderedDict.__class__",
    "torch._utils..._rebuild_tensor_v2": "torch._utils.\n._rebuild_tensor_v2",
    "torch.QInt8Storage": "torch\nQInt8Storage",
    "torch.ComplexFloatStorage": "torch\nComplexFloatStorage",
    r"\xff.\x1b[2J": "",
}
REFUSED: dict[str, tuple[bytes, str]] = {
    **{f"global {name}": (call(raw), f"refuses pickle global '{name}'") for name, raw in GLOBALS.items() if raw},
    "global of control characters": (b"c\xff\n\x1b[2J\n.", r"refuses pickle global '\xff.\x1b[2J'"),
    "endless global": (b"c" + b"a" * 1000, "more than 200 bytes"),
    "memo swapped under a global": (
        text(b"os") + b"q\0" + text(b"system") + b"q\1h\0h\1\x93.",
        "unsupported pickle opcode 0x93",
    ),
    **{
        f"opcode {name}": (b"}" + bytes([code]) + b"0\n" * 8 + b".", f"unsupported pickle opcode 0x{code:02x}")
        for name, code in {
            "FRAME": 0x95,
            "NEXT_BUFFER": 0x97,
            "READONLY_BUFFER": 0x98,
            "BYTEARRAY8": 0x96,
            "EXT1": 0x82,
            "EXT2": 0x83,
            "EXT4": 0x84,
            "INST": ord("i"),
            "OBJ": ord("o"),
            "NEWOBJ": 0x81,
            "NEWOBJ_EX": 0x92,
            "STACK_GLOBAL": 0x93,
            "PERSID": ord("P"),
            "MEMOIZE": 0x94,
            "DUP": ord("2"),
            "POP": ord("0"),
            "LONG4": 0x8B,
            "BINBYTES8": 0x8E,
            "BINUNICODE8": 0x8D,
            "SHORT_BINBYTES": ord("C"),
            "BINSTRING": ord("T"),
            "BINFLOAT": ord("G"),
            "FROZENSET": 0x91,
            "UNICODE": ord("V"),
            "INT": ord("I"),
            "LONG": ord("L"),
        }.items()
    },
    "text of 4 GB": (b"X\xff\xff\xff\xff.", "4,294,967,295 bytes expected"),
    "text that is not UTF-8": (text(b"\xff") + b".", "not UTF-8"),
    "long integer": (b"\x8a\xff" + bytes(255) + b".", "integer of 255 bytes"),
    "deep marks": (b"(" * 1000 + b".", "too deep"),
    "too many values": (b"N" * (limits.PICKLE_STACK + 1) + b".", "too large"),
    "too many opcodes": (b"}q\0" + b"h\0\x85" * (limits.PICKLE_OPCODES // 2) + b".", "too large"),
    "empty": (b"", "ends early"),
    "no STOP": (b"}", "ends early"),
    "nothing to stop with": (b".", "stops with 0 values"),
    "two values left": (b"NN.", "stops with 2 values"),
    "mark left": (b"N(.", "1 marks"),
    "stack underflow": (b"\x85.", "empty stack"),
    "underflow below a mark": (b"N(\x85.", "empty stack"),
    "tuple without mark": (b"t.", "never set"),
    "memo get before put": (b"h\5.", "memo before it is there"),
    "put of nothing": (b"q\0.", "empty stack"),
    "SETITEM on a list": (b"]" + text(b"a") + b"Ns.", "on a list"),
    "SETITEM on a tensor": (tensor() + text(b"a") + b"Ns.", "on a tensor"),
    "SETITEMS of odd length": (b"}(" + text(b"a") + b"u.", "sets 1 keys"),
    "number as key": (b"}K\0Ns.", "key is not a text"),
    "tuple as key": (b"})Ns.", "key is not a text"),
    "key of a megabyte": (b"}" + text(b"a" * (1 << 20)) + b"Ns.", "at most 256 characters"),
    "key twice": (b"}" + text(b"a") + b"Ns" + text(b"a") + b"Ns.", "duplicate name 'a'"),
    "APPEND on a dict": (b"}Na.", "appends to a dict"),
    "APPENDS on a tuple": (b")(Ne.", "appends to a tuple"),
    "REDUCE of a text": (text(b"os.system") + b")R.", "calls a str"),
    "REDUCE of a storage type": (b"ctorch\nHalfStorage\n)R.", "calls a storagetype"),
    "REDUCE with a list": (b"ccollections\nOrderedDict\n]R.", "with a list"),
    "OrderedDict of something": (b"ccollections\nOrderedDict\n]\x85R.", "with 1 arguments"),
    "tensor of 5 arguments": (tensor(rest=b"\x89") + b".", "with 5 arguments"),
    "tensor of 7 arguments": (tensor(rest=b"\x89}}") + b".", "with 7 arguments"),
    "tensor without storage": (tensor(storage=b"N") + b".", "built from other things"),
    "tensor with hooks of a list": (tensor(rest=b"\x89]") + b".", "built from other things"),
    "tensor with gradient 1": (tensor(rest=b"K\1}") + b".", "built from other things"),
    "negative offset": (tensor(offset=b"J\xff\xff\xff\xff") + b".", "bad offset"),
    "offset True": (tensor(offset=b"\x88") + b".", "bad offset"),
    "offset of 2**64": (tensor(offset=b"\x8a\x09" + bytes(8) + b"\1") + b".", "bad offset"),
    "shape is a list": (tensor(shape=b"](K\3K\4e") + b".", "bad offset, shape"),
    "negative dimension": (tensor(shape=b"K\3J\xff\xff\xff\xff\x86") + b".", "bad offset, shape"),
    "shape and stride of different length": (tensor(shape=b"K\x0c\x85") + b".", "bad offset, shape"),
    "5 dimensions": (tensor(shape=b"(" + b"K\1" * 5 + b"t", stride=b"(" + b"K\1" * 5 + b"t") + b".", "5 dimensions"),
    "parameter of a dict": (b"ctorch._utils\n_rebuild_parameter\n}\x89}\x87R.", "does not take"),
    "parameter of 2": (b"ctorch._utils\n_rebuild_parameter\n" + tensor() + b"\x89\x86R.", "does not take"),
    "persistent id is a text": (text(b"0") + b"Q.", "something else than a storage"),
    "persistent id of a module": (storage().replace(b"storage", b"modules") + b".", "something else than a storage"),
    "persistent id without type": (b"(" + text(b"storage") + b"N" + text(b"0") * 2 + b"K\1tQ.", "something else"),
    "storage view": (storage(rest=b")") + b".", "something else than a storage"),
    "storage of 7": (storage(rest=b"NN") + b".", "something else than a storage"),
    "storage key is a number": (storage(key=b"K\0") + b".", "key is not a text"),
    "storage key is empty": (storage(key=text(b"")) + b".", "key is not a text"),
    "storage key of a million": (storage(key=text(b"0" * 1_000_000)) + b".", "key is not a text"),
    "storage key of control characters": (storage(key=text(b"\x1b[2J")) + b".", "key is not a text"),
    "negative storage": (storage(elements=b"J\xff\xff\xff\xff") + b".", "does not state how many"),
    "storage of nested tuples": (storage(elements=b"N" + b"\x85" * 100_000) + b".", "does not state how many"),
    "BUILD on a plain dict": (b"}}b.", "attributes of a dict"),
    "BUILD on a tensor": (tensor() + b"}b.", "attributes of a tensor"),
    "BUILD from a tuple": (b"ccollections\nOrderedDict\n)R)b.", "from a tuple"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_pickle_that_is_no_state_dict_is_refused_with_one_line(case: str) -> None:
    program, fragment = REFUSED[case]
    with pytest.raises(DataError) as caught:
        read_pickle(b"\x80\x02" + program, 0, "m.bin")
    message = str(caught.value)
    assert message.startswith("m.bin: ")
    assert fragment in message
    assert len(message) <= 300
    assert message.isprintable()


@pytest.mark.parametrize("start", [b"\x80\x00", b"\x80\x03", b"\x80\x04\x95", b"\x80\x05", b"(dp0\n", b"", b"}"])
def test_only_protocol_2_is_read(start: bytes) -> None:
    with pytest.raises(DataError, match="protocol"):
        read_pickle(start + b"}.", 0, "m.bin")


def test_state_dict_becomes_descriptions_of_tensors() -> None:
    value, end = read_pickle(GOOD, 0, "m.bin")
    assert end == len(GOOD)
    assert value == {
        "a": TensorRef(StorageRef("f16", "0", 12), 0, (3, 4), (4, 1)),
        "b": TensorRef(StorageRef("f32", "1", 70_000), 69_000, (2, 2), (1, 2)),
    }


def test_parameter_is_its_tensor() -> None:
    program = b"\x80\x02ctorch._utils\n_rebuild_parameter\n" + tensor() + b"\x88}\x87R."
    assert read_pickle(program, 0, "m.bin")[0] == TensorRef(StorageRef("f16", "0", 12), 0, (3, 4), (4, 1))


def test_pickles_one_after_another_are_read_one_at_a_time() -> None:
    first, second = Pickler(), Pickler()
    first.integer(-(1 << 33))
    second.text("文")
    data = bytes(first.out + b"." + second.out + b"." + b"data")
    value, at = read_pickle(data, 0, "m.bin")
    assert value == -(1 << 33)
    assert read_pickle(data, at, "m.bin") == ("文", len(data) - 4)


def test_hostile_sizes_cost_no_memory() -> None:
    programs = [
        b"}r\0\0\0\x10.",
        b"}r\xff\xff\xff\xff.",
        b"X\xff\xff\xff\xff.",
        b"\x8b\xff\xff\xff\x7f.",
        b"\x8e" + b"\xff" * 8,
    ]
    tracemalloc.start()
    for program in programs:
        try:
            read_pickle(b"\x80\x02" + program, 0, "m.bin")
        except DataError:
            continue
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 1 << 20


def test_values_that_hold_themselves_or_nest_deeply_do_no_harm() -> None:
    value, _ = read_pickle(b"\x80\x02}q\0" + text(b"a") + b"h\0s.", 0, "m.bin")
    assert value["a"] is value
    value, _ = read_pickle(b"\x80\x02]q\0h\0a.", 0, "m.bin")
    assert value[0] is value
    assert read_pickle(b"\x80\x02)" + b"\x85" * 300_000 + b".", 0, "m.bin")[1] == 300_004


def test_marks_to_the_limit_are_accepted() -> None:
    n = limits.PICKLE_DEPTH
    assert read_pickle(b"\x80\x02" + b"(" * n + b"t" * n + b".", 0, "m.bin")[1] == 2 * n + 3


def test_flipped_bytes_give_a_value_or_a_data_error() -> None:
    rng = random.Random(0)
    for _ in range(5000):
        program = bytearray(GOOD)
        for _ in range(rng.choice((1, 2, 8))):
            program[rng.randrange(len(program))] = rng.randrange(256)
        try:
            read_pickle(bytes(program), 0, "m.bin")
        except DataError:
            continue
