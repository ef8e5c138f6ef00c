"""Unsound headers get one sentence each, and whatever is accepted the library accepts with the same bytes."""

import io
import json
import random
import struct
from typing import Any

import pytest
import safetensors
from torch_files import safetensors_bytes

from glmcpu import limits
from glmcpu.errors import DataError
from glmcpu.safetensors_header import BITS, Entry, Header, read_header


def entry(begin: Any = 0, end: Any = 4, dtype: Any = "U8", shape: Any = (4,), **extra: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end], **extra}


def raw(text: bytes, data: bytes = b"1234") -> bytes:
    return struct.pack("<Q", len(text)) + text + data


def read(content: bytes) -> Header:
    return read_header(io.BytesIO(content), len(content), "m.safetensors")


ONE = json.dumps({"a": entry()}).encode()
REFUSED: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "too short"),
    "seven bytes": (b"1234567", "too short"),
    "header of 0 bytes": (raw(b""), "states a header of 0 bytes"),
    "header of 1 byte": (struct.pack("<Q", 1) + b"{}1234", "states a header of 1 bytes"),
    "header of 2**63": (struct.pack("<Q", 1 << 63) + ONE, "9,223,372,036,854,775,808"),
    "header of 2**64-1": (struct.pack("<Q", (1 << 64) - 1) + ONE, "18,446,744,073,709,551,615"),
    "header longer than the file": (struct.pack("<Q", len(ONE) + 5) + ONE + b"1234", "of at most"),
    "leading space": (raw(b" " + ONE), "begins with b' '"),
    "byte order mark": (raw(b"\xef\xbb\xbf" + ONE), "begins with"),
    "utf-16": (raw(ONE.decode().encode("utf-16-le")), "not valid JSON"),
    "trailing NUL": (raw(ONE + b"\0"), "not valid JSON"),
    "array": (raw(b"[]"), "begins with b'['"),
    "not JSON": (raw(b"{'a': 1}"), "not valid JSON"),
    "tensor twice": (raw(b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},' + ONE[1:]), "duplicate key 'a'"),
    "dtype twice": (raw(ONE.replace(b'"dtype"', b'"dtype": "I8", "dtype"')), "duplicate key 'dtype'"),
    "hole at the start": (safetensors_bytes({"a": entry(1, 5)}, b"12345"), "begins at data byte 1"),
    "hole in the middle": (safetensors_bytes({"a": entry(), "b": entry(5, 9)}, b"123456789"), "begins at data byte 5"),
    "overlap": (safetensors_bytes({"a": entry(), "b": entry(2, 6)}, b"123456"), "begins at data byte 2"),
    "the same bytes twice": (safetensors_bytes({"a": entry(), "b": entry()}, b"1234"), "begins at data byte 0"),
    "reversed offsets": (safetensors_bytes({"a": entry(4, 0)}, b"1234"), "data_offsets"),
    "negative offset": (safetensors_bytes({"a": entry(-4, 0)}, b"1234"), "expected two integers"),
    "float offset": (safetensors_bytes({"a": entry(0.0, 4.0)}, b"1234"), "expected two integers"),
    "exponent offset": (raw(ONE.replace(b"[0, 4]", b"[0, 4e0]")), "expected two integers"),
    "true as offset": (safetensors_bytes({"a": entry(False, 4)}, b"1234"), "expected two integers"),
    "text as offset": (safetensors_bytes({"a": entry("0", "4")}, b"1234"), "expected two integers"),
    "three offsets": (raw(ONE.replace(b"[0, 4]", b"[0, 4, 4]")), "expected two integers"),
    "offset of 2**64": (safetensors_bytes({"a": entry(0, 1 << 64)}, b"1234"), "expected two integers"),
    "bytes after the last tensor": (safetensors_bytes({"a": entry()}, b"1234PK"), "2 extra bytes"),
    "file cut off": (
        safetensors_bytes({"a": entry()}, b"123"),
        "truncated: its tensors need 4 data bytes and it has 3",
    ),
    "size and shape disagree": (safetensors_bytes({"a": entry(0, 4, shape=[5])}, b"1234"), "takes 5 bytes"),
    "shape that is 4 modulo 2**64": (
        safetensors_bytes({"a": entry(shape=[4194305, 4194305, 211106198978564])}, b"1234"),
        "takes 3,713,821,298",
    ),
    "negative dimension": (safetensors_bytes({"a": entry(shape=[-2, -2])}, b"1234"), "positive integers"),
    "empty tensor": (safetensors_bytes({"a": entry(), "b": entry(4, 4, shape=[0])}, b"1234"), "positive integers"),
    "65 dimensions": (safetensors_bytes({"a": entry(shape=[4] + [1] * 64)}, b"1234"), "at most 4"),
    "unknown dtype": (safetensors_bytes({"a": entry(dtype="C128")}, b"1234"), "unknown dtype 'C128'"),
    "lower case dtype": (safetensors_bytes({"a": entry(dtype="u8")}, b"1234"), "unknown dtype 'u8'"),
    "list as dtype": (safetensors_bytes({"a": entry(dtype=["U8"])}, b"1234"), "unknown dtype"),
    "half bytes": (safetensors_bytes({"a": entry(0, 2, dtype="F4", shape=[3])}, b"12"), "takes 2 bytes"),
    "unknown field": (safetensors_bytes({"a": entry(x=1)}, b"1234"), "expected exactly dtype"),
    "missing field": (safetensors_bytes({"a": {"dtype": "U8", "shape": [4]}}, b"1234"), "expected exactly dtype"),
    "entry is a list": (safetensors_bytes({"a": [1, 2, 3]}, b"1234"), "expected exactly dtype"),
    "metadata of numbers": (safetensors_bytes({"__metadata__": {"a": 1}}, b""), "must map texts to texts"),
    "metadata null": (raw(b'{"__metadata__": null}', b""), "must map texts to texts"),
    "metadata nested": (safetensors_bytes({"__metadata__": {"a": {}}}, b""), "must map texts to texts"),
    "metadata twice": (raw(b'{"__metadata__": {}, "__metadata__": {}}', b""), "duplicate key"),
    "control character in a name": (safetensors_bytes({"a\x1b[2J": entry()}, b"1234"), "tensor name"),
    "right-to-left override": (safetensors_bytes({"a\u202egpj": entry()}, b"1234"), "tensor name"),
    "long name": (safetensors_bytes({"a" * 257: entry()}, b"1234"), "257 characters"),
    "name of a megabyte": (safetensors_bytes({"a" * (1 << 20): entry()}, b"1234"), "1,048,576 characters"),
    "too many tensors": (
        safetensors_bytes({str(n): entry(n, n + 1, shape=[1]) for n in range(4097)}, bytes(4097)),
        "4,097 tensors",
    ),
    "a hundred thousand tensors": (
        safetensors_bytes({str(n): entry(n, n + 1, shape=[1]) for n in range(100_000)}, bytes(100_000)),
        "at most 500,000",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unsound_header_is_refused_with_one_line_that_names_the_file(case: str) -> None:
    content, fragment = REFUSED[case]
    with pytest.raises(DataError) as caught:
        read(content)
    message = str(caught.value)
    assert message.startswith("m.safetensors: ")
    assert fragment in message
    assert len(message) <= 300
    assert message.isprintable()


def test_header_gives_tensors_in_order_of_their_data_and_metadata() -> None:
    header = {"__metadata__": {"format": "pt"}, "late": entry(4, 6), "early": entry(0, 4, "F16", [2, 1])}
    header["late"] |= {"shape": [2]}
    content = safetensors_bytes(header, b"123456")
    data_begin = len(content) - 6
    tensors = {"early": Entry("F16", (2, 1), 0, 4), "late": Entry("U8", (2,), 4, 6)}
    assert read(content) == Header({"format": "pt"}, tensors, data_begin)
    assert list(read(content).tensors) == ["early", "late"]


def test_scalars_and_padding_and_no_tensors_are_legal() -> None:
    assert read(raw(b'{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}   ')).tensors["a"].shape == ()
    assert read(raw(b"{}", b"")).tensors == {}


def test_header_of_exactly_the_largest_size_is_read() -> None:
    text = ONE + b" " * (limits.SAFETENSORS_HEADER_BYTES - len(ONE))
    assert read(raw(text)).tensors["a"].end == 4
    with pytest.raises(DataError, match="states a header of 8,388,609 bytes"):
        read(raw(text + b" "))


def test_file_that_shrinks_under_the_reader_is_refused() -> None:
    content = raw(ONE)
    with pytest.raises(DataError, match="inside its header"):
        read_header(io.BytesIO(content[:20]), len(content), "m.safetensors")


RECENT = {"F4", "F6_E2M3", "F6_E3M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "C64"}


@pytest.mark.parametrize("dtype", BITS)
def test_every_dtype_has_the_size_the_library_gives_it(dtype: str) -> None:
    content = safetensors_bytes({"a": entry(0, BITS[dtype], dtype, [8])}, bytes(BITS[dtype]))
    assert read(content).tensors["a"].dtype == dtype
    try:
        safetensors.deserialize(content)
    except safetensors.SafetensorError:
        if dtype not in RECENT:
            raise
        pytest.skip(f"this release of the library does not know {dtype}")


def test_whatever_is_accepted_the_library_accepts_with_the_same_bytes() -> None:
    header = {"__metadata__": {"k": "v"}, "ab": entry(0, 8, "F16", [2, 2]), "cd": entry(8, 11, "I8", [3])}
    good = safetensors_bytes(header, bytes(range(11)))
    rng = random.Random(0)
    accepted = 0
    for _ in range(4000):
        content = bytearray(good)
        for _ in range(rng.choice((1, 1, 2, 3))):
            at = rng.randrange(len(content))
            change = rng.randrange(3)
            if change == 0:
                content[at] = rng.choice((rng.randrange(256), *b'0123456789[]{}",:- '))
            elif change == 1:
                del content[at]
            else:
                content.insert(at, rng.choice(content))
        try:
            ours = read(bytes(content))
        except DataError:
            continue
        theirs = {name: bytes(view["data"]) for name, view in safetensors.deserialize(bytes(content))}
        begin = ours.data_begin
        assert theirs == {k: bytes(content[begin + e.begin : begin + e.end]) for k, e in ours.tensors.items()}
        accepted += 1
    assert accepted > 50
