"""The header of a safetensors file, read more strictly than the safetensors library reads it.

    | N: u64 | header: N bytes of JSON, padded with spaces | tensor data ... to the end of the file |

    {"__metadata__": {"key": "text"}, "name": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}, ...}

Tensors lie end to end: the first begins at 0, each begins where the last ended, the last ends with the file. So no
byte is outside a tensor and none is in two. What the library refuses is refused here too; beyond that, keys given
twice, unknown fields, empty tensors and unprintable names, which two readers may understand differently. All sizes
are Python integers, which do not wrap, and are checked before anything is allocated. Values are not looked at.
"""

from dataclasses import dataclass
from typing import Any, BinaryIO

from glmcpu import limits, strict_json
from glmcpu.errors import DataError, printable, shown

BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8"), 8),
    "F4": 4,
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}
"""Bits of one element, for every dtype name of the format."""


@dataclass(frozen=True)
class Entry:
    """One tensor: bytes `begin` to `end`, counted from Header.data_begin."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    metadata: dict[str, str]
    tensors: dict[str, Entry]
    data_begin: int


def read_header(file: BinaryIO, size_bytes: int, name: str) -> Header:
    """The header of the safetensors file of `size_bytes` bytes open in `file`; moves the file's position.

    Raises DataError, beginning with `name`, for every departure from the format; tensors are in order of their data.
    """
    name = shown(name)
    file.seek(0)
    start = file.read(8)
    if len(start) < 8:
        raise DataError(f"{name}: {size_bytes} bytes are too short for a safetensors file; get the file again")
    length = int.from_bytes(start, "little")
    room = min(size_bytes - 8, limits.SAFETENSORS_HEADER_BYTES)
    if not 2 <= length <= room:
        raise DataError(
            f"{name}: not a safetensors file: it states a header of {length:,} bytes, of at most {room:,} possible in "
            f"{size_bytes:,}; get the file again"
        )
    text = _read_exactly(file, length, name)
    if not text.startswith(b"{"):
        raise DataError(f"{name}: the safetensors header begins with {text[:1]!r}, not with '{{'; get the file again")
    table = strict_json.parse(text, name)
    metadata = _metadata(table.pop("__metadata__", {}), name)
    if len(table) > limits.TENSORS:
        raise DataError(f"{name}: {len(table):,} tensors, and at most {limits.TENSORS:,} are accepted")
    entries = {key: _entry(value, f"{name}: tensor '{_checked_name(key, name)}'") for key, value in table.items()}
    tensors = dict(sorted(entries.items(), key=lambda item: item[1].begin))
    _check_end_to_end(tensors, size_bytes - 8 - length, name)
    return Header(metadata, tensors, 8 + length)


def _read_exactly(file: BinaryIO, length: int, name: str) -> bytes:
    data = b""
    while len(data) < length:
        chunk = file.read(length - len(data))
        if not chunk:
            raise DataError(f"{name}: ends after {8 + len(data):,} bytes, inside its header; get the file again")
        data += chunk
    return data


def _metadata(value: Any, name: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise DataError(f"{name}: __metadata__ of the safetensors header must map texts to texts; get the file again")
    return value


def _checked_name(key: str, name: str) -> str:
    if not 1 <= len(key) <= limits.TENSOR_NAME_CHARS or not key.isprintable():
        raise DataError(
            f"{name}: tensor name '{printable(key, 40)}' ({len(key):,} characters) is refused; expected at most "
            f"{limits.TENSOR_NAME_CHARS} printable characters"
        )
    return printable(key, 80)


def _entry(value: Any, what: str) -> Entry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise DataError(f"{what}: expected exactly dtype, shape and data_offsets in the safetensors header")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise DataError(f"{what}: unknown dtype '{printable(dtype, 40)}' in the safetensors header")
    if not _are_indices(shape) or len(shape) > limits.TENSOR_RANK or 0 in shape:
        raise DataError(
            f"{what}: shape {printable(shape, 60)}; expected at most {limits.TENSOR_RANK} positive integers"
        )
    if not _are_indices(offsets) or len(offsets) != 2:
        raise DataError(f"{what}: data_offsets {printable(offsets, 60)}; expected two integers from 0 up")
    bits = BITS[dtype]
    for n in shape:
        bits *= n
    begin, end = offsets
    if bits != 8 * (end - begin):
        raise DataError(
            f"{what}: shape {printable(shape, 60)} of {dtype} takes {-(-bits // 8):,} bytes, but its data_offsets are "
            f"{printable(offsets, 60)}"
        )
    return Entry(dtype, tuple(shape), begin, end)


def _are_indices(values: Any) -> bool:
    """Whether it is a list of integers 0..2**63-1; JSON's true and 1.0 are not integers."""
    return isinstance(values, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in values)


def _check_end_to_end(tensors: dict[str, Entry], data_bytes: int, name: str) -> None:
    at = 0
    for key, entry in tensors.items():
        if entry.begin != at:
            raise DataError(
                f"{name}: tensor '{printable(key, 80)}' begins at data byte {entry.begin:,}, the one before ends at "
                f"{at:,}; expected no hole and no overlap"
            )
        at = entry.end
    if at > data_bytes:
        raise DataError(
            f"{name}: truncated: its tensors need {at:,} data bytes and it has {data_bytes:,}; download it again"
        )
    if at < data_bytes:
        raise DataError(f"{name}: {data_bytes - at:,} extra bytes after the last tensor; get the file again")
