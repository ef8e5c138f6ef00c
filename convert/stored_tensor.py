"""A tensor as a view of a run of bytes in a file, and how its values are read, a slab of rows at a time.

    storage   | e0 | e1 | e2 | e3 | e4 | e5 | e6 | e7 |     `elements` of one dtype, at byte `begin` of the file
    tensor          offset 1, shape (2, 3), stride (3, 1)   ->  [[e1, e2, e3], [e4, e5, e6]]

Rows that lie one after another are read slab by slab, so a 1 GB embedding costs one slab of memory. Any other stride
(a transposed or cut-out tensor, which official files do not have) costs the memory of its whole storage. A tensor
that shows one element twice is refused: no weight does, and it could claim any size from a few bytes.
"""

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from glmcpu.errors import DataError, printable
from glmcpu.kernels.elements import widen
from glmcpu.memory import alloc

from .weight_file import WeightFile

ITEM_BYTES = {"f64": 8, "f32": 4, "f16": 2, "bf16": 2, "i64": 8, "i32": 4, "i16": 2, "i8": 1, "u8": 1, "bool": 1}
"""Every dtype that can be read, and the bytes of one element."""

_NUMPY = {"f64": "<f8", "f32": "<f4", "f16": "<f2", "bf16": "<u2", "i64": "<i8", "i32": "<i4", "i16": "<i2"}
_NUMPY |= {"i8": "i1", "u8": "u1", "bool": "u1"}
_CHECK_BYTES = 4 << 20


@dataclass(frozen=True)
class Storage:
    """`elements` elements of `dtype` at byte `begin` of `file`; `checksum` is their CRC-32 if stated."""

    file: WeightFile
    key: str
    dtype: str
    elements: int
    begin: int
    checksum: int | None = None

    @property
    def size_bytes(self) -> int:
        return self.elements * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class StoredTensor:
    """Element (i, j, ...) is number offset + i * stride[0] + j * stride[1] + ... of the storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def contiguous(self) -> bool:
        """Whether the elements lie in C order without gaps."""
        run = 1
        for n, step in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if n != 1 and step != run:
                return False
            run *= n
        return True


def check_view(tensor: StoredTensor, what: str) -> None:
    """Raises DataError, beginning with `what`, unless every element of the tensor is its own and in its storage."""
    shape, stride, elements = tensor.shape, tensor.stride, tensor.storage.elements
    layout = f"shape {printable(shape, 60)}, stride {printable(stride, 60)}, offset {tensor.offset:,}"
    if min(shape, default=1) < 1 or min(stride, default=0) < 0 or tensor.offset < 0 or len(shape) != len(stride):
        raise DataError(f"{what}: {layout}; expected positive sizes and strides")
    last = 0  # the farthest element of the dimensions seen so far, from small strides to large
    for step, n in sorted((step, n) for n, step in zip(shape, stride, strict=True) if n > 1):
        if step <= last:
            raise DataError(f"{what}: {layout} shows elements twice; expected a tensor that was saved whole")
        last += step * (n - 1)
    if tensor.offset + last >= elements:
        raise DataError(
            f"{what}: {layout} needs {tensor.offset + last + 1:,} elements and its storage has {elements:,}"
        )


def slabs(tensor: StoredTensor, rows: int) -> Iterator[NDArray[Any]]:
    """Blocks of `rows` rows of a tensor of one or more dimensions, C-contiguous; the last may be shorter.

    Floats come as float32 (exact for f16, bf16 and f32; f64 is rounded), integers as they are, bools as uint8. A slab
    is valid until the next is asked for: its memory is used again. Raises DataError when the checksum is wrong, which
    a tensor that fills its storage shows only before its last slab, and MachineError when reading fails.
    """
    if rows < 1:
        raise ValueError(f"rows is {rows}; expected at least 1")
    rows = min(rows, tensor.shape[0])
    return _run_slabs(tensor, rows) if tensor.contiguous else _strided_slabs(tensor, rows)


def read(tensor: StoredTensor) -> NDArray[Any]:
    """The whole tensor, of any number of dimensions, in memory of its own; dtypes and errors as `slabs`."""
    column = replace(tensor, shape=(*tensor.shape, 1), stride=(*tensor.stride, 1))
    return next(slabs(column, column.shape[0])).reshape(tensor.shape)


def verify(storage: Storage) -> None:
    """Reads a storage once and compares its checksum; raises DataError when they differ."""
    if storage.checksum is None or storage.key in storage.file.verified:
        return
    buffer = memoryview(bytearray(min(_CHECK_BYTES, storage.size_bytes)))
    checksum = 0
    for done in range(0, storage.size_bytes, _CHECK_BYTES):
        part = buffer[: storage.size_bytes - done]
        storage.file.read_into(storage.begin + done, part)
        checksum = zlib.crc32(part, checksum)
    _settle(storage, checksum)


def _settle(storage: Storage, checksum: int) -> None:
    if storage.checksum is not None and checksum != storage.checksum:
        raise DataError(
            f"{storage.file.name}: checksum mismatch in member 'data/{printable(storage.key, 40)}': its data give "
            f"{checksum:08x}, the archive states {storage.checksum:08x}; download the file again"
        )
    storage.file.verified.add(storage.key)


def _run_slabs(tensor: StoredTensor, rows: int) -> Iterator[NDArray[Any]]:
    """Rows that lie one after another in the file."""
    storage, R = tensor.storage, tensor.shape[0]
    item = ITEM_BYTES[storage.dtype]
    row_elements = math.prod(tensor.shape[1:])
    whole = R * row_elements == storage.elements
    if not whole:
        verify(storage)
    begin = storage.begin + tensor.offset * item
    raw = alloc((rows * row_elements * item,), np.uint8, "a slab of a weight")
    wide = _wide(rows * row_elements, storage.dtype)
    checksum = 0
    for first in range(0, R, rows):
        n = min(rows, R - first)
        part = raw[: n * row_elements * item]
        storage.file.read_into(begin + first * row_elements * item, part.data)
        if whole:
            checksum = zlib.crc32(part.data, checksum)
            if first + n == R:
                _settle(storage, checksum)
        yield _decode(part.view(_NUMPY[storage.dtype]), storage.dtype, wide).reshape(n, *tensor.shape[1:])


def _strided_slabs(tensor: StoredTensor, rows: int) -> Iterator[NDArray[Any]]:
    """Any other tensor: its whole storage is read, and the rows are gathered from memory."""
    storage, R = tensor.storage, tensor.shape[0]
    item = ITEM_BYTES[storage.dtype]
    raw = alloc((storage.size_bytes,), np.uint8, f"a tensor of {storage.file.name} that is not contiguous")
    storage.file.read_into(storage.begin, raw.data)
    _settle(storage, zlib.crc32(raw.data))
    elements = raw.view(_NUMPY[storage.dtype])[tensor.offset :]
    view = as_strided(elements, tensor.shape, [item * step for step in tensor.stride], writeable=False)
    wide = _wide(rows * math.prod(tensor.shape[1:]), storage.dtype)
    for first in range(0, R, rows):
        part = view[first : first + rows]
        yield _decode(np.ascontiguousarray(part).reshape(-1), storage.dtype, wide).reshape(part.shape)


def _wide(elements: int, dtype: str) -> NDArray[Any] | None:
    """Memory for the float32 values of a dtype that is not float32 itself."""
    return alloc((elements,), np.float32, "a slab of a weight") if dtype in ("f64", "f16", "bf16") else None


def _decode(values: NDArray[Any], dtype: str, wide: NDArray[Any] | None) -> NDArray[Any]:
    """Little-endian stored values, flat -> the values handed out: native order, floats as float32 in `wide`."""
    if wide is None:
        return values.astype(values.dtype.newbyteorder("="), copy=False)
    out = wide[: values.size]
    if dtype == "f16" and values.dtype.isnative:
        widen(out, values.view(np.uint16))
    elif dtype == "bf16":  # the upper half of a float32
        np.left_shift(values, 16, out=out.view(np.uint32), dtype=np.uint32)
    else:
        with np.errstate(over="ignore"):  # a float64 too large becomes infinity, which the converter refuses by name
            np.copyto(out, values, casting="same_kind")
    return out
