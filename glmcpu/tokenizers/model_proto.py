"""What a sentencepiece model file must look like before the library may see it.

The file is a protocol buffer: fields one after the other, each a tag (number and wire type) and a value.

    field 1, repeated   a piece: 1 text (bytes), 2 score (f32), 3 type (varint; absent: normal)
    field 2             how it was trained: ignored here
    fields 3, 5         normaliser and denormaliser: 2 is the character map, a blob for the C++ code:
                        | u32 size | `size` bytes: a double-array trie of u32 units | NUL-terminated replacements |

The library follows the trie and the offsets in it without looking, so a wrong one reads outside the blob. Here every
length lies inside its parent, every count under a bound of limits.py, every trie link inside the trie. Left out:
whether the pieces make sense (the library and `Tokenizer` ask that).
"""

from collections.abc import Iterator

import numpy as np

from glmcpu import limits
from glmcpu.errors import DataError

_PIECE, _NORMALIZERS = 1, (3, 5)
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_TYPES = range(1, 7)  # normal, unknown, control, user defined, unused, byte

_PIECE_FIELDS = {1: _BYTES, 2: _FIXED32, 3: _VARINT}  # number -> wire type

_FETCH = "fetch ice_text.model (2,706,249 bytes) again"


def check_model(data: bytes, name: str) -> int:
    """The number of pieces in a sentencepiece model; `name` is the file, for the message.

    Raises DataError when `data` is not such a model: empty, a Git LFS pointer, a web page, cut off, out of bounds.
    """
    _refuse_other_files(data, name)
    try:
        count = 0
        for field, wire, begin, end in _fields(data, 0, len(data)):
            if field == _PIECE:
                count += 1
                _check_piece(data, wire, begin, end, count)
            elif field in _NORMALIZERS:
                _check_normalizer(data, wire, begin, end)
        if not count:
            raise _MalformedError("it holds no pieces")
    except _MalformedError as error:
        raise DataError(f"{name}: not a sentencepiece model ({error}); {_FETCH}") from None
    return count


class _MalformedError(Exception):
    """What is wrong with the bytes; becomes a DataError with the file's name."""


def _refuse_other_files(data: bytes, name: str) -> None:
    if not data:
        raise DataError(f"{name}: the file is empty; {_FETCH}")
    if len(data) > limits.TOKENIZER_BYTES:
        raise DataError(
            f"{name}: {len(data):,} bytes, and a tokenizer has at most {limits.TOKENIZER_BYTES:,}; {_FETCH}"
        )
    if data.startswith(b"version https://git-lfs"):
        raise DataError(
            f"{name}: a Git LFS pointer ({len(data):,} bytes), not the file it points to; run `git lfs pull`"
        )
    if data[:256].lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise DataError(f"{name}: a web page, not a sentencepiece model; {_FETCH}")


def _fields(data: bytes, begin: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(number, wire type, begin, end) of each field's value in data[begin:end]; a length prefix is not in the value."""
    while begin < end:
        tag, begin = _varint(data, begin, end)
        wire = tag & 7
        if wire == _BYTES:
            size, begin = _varint(data, begin, end)
            stop = begin + size
        elif wire == _FIXED32:
            stop = begin + 4
        elif wire == _VARINT:
            stop = _varint(data, begin, end)[1]
        elif wire == _FIXED64:
            stop = begin + 8
        else:
            raise _MalformedError(f"wire type {wire} at byte {begin:,}")
        if stop > end or tag < 8:
            raise _MalformedError(f"the field at byte {begin:,} ends at {stop:,}, beyond {end:,}: cut off or damaged")
        yield tag >> 3, wire, begin, stop
        begin = stop


def _varint(data: bytes, begin: int, end: int) -> tuple[int, int]:
    """The number at `begin` (seven bits a byte, lowest first) and where it ends."""
    if begin < end and data[begin] < 0x80:  # nearly every one
        return data[begin], begin + 1
    value = 0
    for i, byte in enumerate(data[begin : min(end, begin + 10)]):
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value, begin + i + 1
    raise _MalformedError(f"a number without end at byte {begin:,}: cut off or damaged")


def _check_piece(data: bytes, wire: int, begin: int, end: int, count: int) -> None:
    if count > limits.TOKENIZER_PIECES:
        raise _MalformedError(f"more than {limits.TOKENIZER_PIECES:,} pieces")
    if wire != _BYTES:
        raise _MalformedError(f"piece {count - 1:,} has wire type {wire}")
    text = b""
    for field, kind, a, b in _fields(data, begin, end):
        if kind != _PIECE_FIELDS.get(field, kind):
            raise _MalformedError(f"field {field} of piece {count - 1:,} has wire type {kind}")
        if field == 1:
            text = data[a:b]
        elif field == 2 and data[a + 3] & 0x7F == 0x7F and data[a + 2] >= 0x80:  # all exponent bits set
            raise _MalformedError(f"the score of piece {count - 1:,} is not a finite number")
        elif field == 3 and _varint(data, a, b)[0] not in _TYPES:
            raise _MalformedError(f"piece {count - 1:,} has the unknown type {_varint(data, a, b)[0]}")
    if not 0 < len(text) <= limits.PIECE_BYTES:
        raise _MalformedError(f"piece {count - 1:,} has {len(text):,} bytes, not 1 to {limits.PIECE_BYTES:,}")
    try:
        text.decode()
    except UnicodeDecodeError:
        raise _MalformedError(f"piece {count - 1:,} is not UTF-8") from None


def _check_normalizer(data: bytes, wire: int, begin: int, end: int) -> None:
    if wire != _BYTES:
        raise _MalformedError(f"the normaliser has wire type {wire}")
    for field, kind, a, b in _fields(data, begin, end):
        if field == 2 and kind == _BYTES and a < b:
            _check_character_map(data[a:b])


def _check_character_map(blob: bytes) -> None:
    """Every link of the double-array trie stays inside it, and every value points into the replacements.

    A unit with bit 31 clear is a node: its children start at (own index) ^ offset and a child's place is that ^ a byte,
    so the whole block of 256 must exist; with bit 8 set the first unit of the block is its value, bit 31 taken away.
    """
    size = int.from_bytes(blob[:4], "little")
    if len(blob) > limits.CHARACTER_MAP_BYTES or size % 4 or not 1024 <= size < len(blob) - 4 or blob[-1]:
        raise _MalformedError(f"the character map has {len(blob):,} bytes and states a trie of {size:,}")
    units = np.frombuffer(blob, "<u4", size // 4, 4).astype(np.int64)
    offsets = (units >> 10) << ((units >> 6) & 8)
    blocks = np.arange(len(units)) ^ offsets
    nodes = units < 1 << 31
    if np.any((blocks[nodes] | 0xFF) >= len(units)):
        raise _MalformedError("the character map points outside itself")
    values = units[blocks[nodes & ((units & 0x100) != 0)]] & 0x7FFFFFFF
    if np.any(values >= len(blob) - 4 - size):
        raise _MalformedError("the character map points outside its replacements")
