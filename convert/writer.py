"""Checkpoint in, packed file out, a slab of rows at a time: memory stays at a few slabs whatever the model's size.

Everything that can be known beforehand is checked first (tensors, space on the disk). The header's length does not
depend on the checksums in it, so space for it is left, the tensors are written where they belong, and the header last.
Then the file is read back and compared before it takes its name. The bytes depend on the input alone.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from glmcpu import files, formats, packed, pages
from glmcpu.errors import DataError, MachineError, printable
from glmcpu.kernels.elements import largest_magnitude
from glmcpu.packed import ALIGNMENT, TOKENIZER, Contents
from glmcpu.safetensors_header import Entry

from .chatglm import Source
from .merge import merged
from .origin import Tensors

Progress = Callable[[str, int, int], None]

_SLAB_BYTES = 32 << 20
HALF_MAX = 65504.0
_NO_CHECKSUM = "00000000"


@dataclass(frozen=True)
class Job:
    """All a packed file is made of."""

    tensors: Tensors
    sources: Mapping[str, Source]  # of each matrix
    vectors: Mapping[str, tuple[str, int]]  # of each vector: its name in `tensors` and the length
    formats: Mapping[str, str]
    tokenizer: bytes | None
    contents: Contents  # checksums still empty
    name: str  # of the source, for messages
    ready: Mapping[str, Callable[[], Mapping[str, NDArray[Any]]]] = field(default_factory=dict)
    """Matrix -> what reads the arrays of its format, where somebody else has rounded it already."""


def write(job: Job, target: Path, source_files: Callable[[], dict[str, Any]], progress: Progress) -> None:
    """Writes the packed file, whole or not at all.

    source_files() gives the hashes of the source's files, asked for at the end. Raises DataError for weights that are
    not finite or do not fit the format, MachineError for the disk.
    """
    tensors = _layout(job)
    reserved = len(packed.header_bytes(_contents(job, dict.fromkeys(tensors, _NO_CHECKSUM), _blank(job)), tensors))
    data_bytes = max((entry.end for entry in tensors.values()), default=0)
    files.require_space(_existing(target.parent), reserved + data_bytes, f"{printable(target.name)}")
    with files.atomic_write(target) as file:
        output = _Output(file, reserved, tensors)
        done = 0
        for ours, source in job.sources.items():
            for written in _matrix(job, ours, source, output):
                done += written
                progress("converting", done, data_bytes)
        for ours, (theirs, _) in job.vectors.items():
            output.put(ours, finite_vector(job.tensors, theirs, job.name))
        if job.tokenizer is not None:
            output.put(TOKENIZER, np.frombuffer(job.tokenizer, np.uint8))
        checksums = {name: f"{crc:08x}" for name, crc in output.crcs.items()}
        header = packed.header_bytes(_contents(job, checksums, source_files()), tensors)
        if len(header) != reserved:
            raise MachineError(f"{job.name}: its files changed while they were read; run again")
        file.seek(0)
        file.write(header)
        pages.read_anew(file)
        _compare(file, output, lambda n: progress("checking", n, data_bytes))


def _contents(job: Job, checksums: dict[str, str], source_files: dict[str, Any]) -> Contents:
    return replace(job.contents, checksums=checksums, source={**job.contents.source, "files": source_files})


def _blank(job: Job) -> dict[str, Any]:
    """The shape of `source_files`' answer, so that the header's length is known before the hashes are."""
    return {path.name: {"sha256": "0" * 64, "size": path.stat().st_size} for path in job.tensors.files}


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


def _layout(job: Job) -> dict[str, Entry]:
    """Every tensor's place. Sizes that are multiples of 64 come first, then falling item sizes: all are aligned."""
    arrays: list[tuple[str, tuple[int, ...], np.dtype[Any]]] = []
    for ours, source in job.sources.items():
        layout = formats.load(job.formats[ours]).layout(source.O, source.I)
        arrays += [(f"{ours}.{key}", shape, np.dtype(dtype)) for key, (shape, dtype) in layout.items()]
    arrays += [(ours, (n,), np.dtype(np.float32)) for ours, (_, n) in job.vectors.items()]
    if job.tokenizer is not None:
        arrays.append((TOKENIZER, (len(job.tokenizer),), np.dtype(np.uint8)))
    sized = [(name, shape, dtype, packed.count(shape) * dtype.itemsize) for name, shape, dtype in arrays]
    sized.sort(key=lambda item: (item[3] % ALIGNMENT != 0, -item[2].itemsize if item[3] % ALIGNMENT else 0))
    entries, at = {}, 0
    for name, shape, dtype, size_bytes in sized:
        entries[name] = Entry(packed.dtype_name(dtype), shape, at, at + size_bytes)
        at += size_bytes
    return entries


class _Output:
    """The file being written: arrays in pieces, each tensor's checksum kept as its pieces come in order."""

    def __init__(self, file: BinaryIO, data_begin: int, tensors: Mapping[str, Entry]) -> None:
        self.tensors, self.data_begin = tensors, data_begin
        self.crcs = dict.fromkeys(tensors, 0)
        self._file = file
        self._filled = dict.fromkeys(tensors, 0)

    def put(self, name: str, piece: NDArray[Any]) -> int:
        """Appends a piece to a tensor; returns its size in bytes."""
        data = np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data
        self._file.seek(self.data_begin + self.tensors[name].begin + self._filled[name])
        self._file.write(data)
        self.crcs[name] = zlib.crc32(data, self.crcs[name])
        self._filled[name] += len(data)
        return len(data)


def _matrix(job: Job, ours: str, source: Source, output: _Output) -> Iterator[int]:
    """Packs one matrix slab by slab; yields the bytes written."""
    if ours in job.ready:
        yield sum(output.put(f"{ours}.{key}", array) for key, array in job.ready[ours]().items())
        return
    name = job.formats[ours]
    kind = formats.load(name)
    largest = float("inf") if name == "f32" else HALF_MAX
    for weight, scale in float_slabs(job.tensors, source, job.name, _SLAB_BYTES, largest):
        # Codes of 8 bits do not fit into 4: such a weight gets scales of its own.
        given = scale if source.bits <= kind.BITS_PER_WEIGHT else None
        yield sum(output.put(f"{ours}.{key}", array) for key, array in kind.pack(weight, given).items())


def float_slabs(
    tensors: Tensors, source: Source, name: str, slab_bytes: int, largest: float
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32] | None]]:
    """Blocks of rows (o, I) f32 of a matrix, and the scales (o,) of those that are stored quantized.

    Where an adapter is merged, the rows are those of the sum, which have no scales. This is the only place that reads a
    matrix, so whoever measures or rounds sees the same weights.
    A block is a multiple of 16 rows, of about `slab_bytes`, and valid until the next is asked for. Raises DataError,
    beginning with `name`, for what is not finite or larger than `largest`.
    """
    scales = tensors.read(source.scale) if source.scale else None
    if scales is not None and not np.isfinite(scales).all():
        raise DataError(f"{name}: tensor '{source.scale}' holds NaN or infinity; fetch the file again")
    rows = max(16, slab_bytes // (4 * source.I) // 16 * 16)
    begin = 0
    for slab in tensors.slabs(source.weight, rows):
        scale = None if scales is None else scales[begin : begin + len(slab)]
        weight = slab if scale is None else _dequantize(slab, scale, source.bits)
        what = f"tensor '{source.weight}'"
        if source.low_rank is not None:
            weight, scale, what = merged(weight, source.low_rank, begin), None, f"{what} with its adapter"
        _check_finite(name, what, weight, begin, largest)
        yield weight, scale
        begin += len(slab)


def _dequantize(codes: NDArray[np.int8], scale: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """Official codes to weights (o, I): int8 as they are, int4 with the even column in the high nibble."""
    if bits == 4:
        pairs = np.stack([codes >> 4, (codes << 4) >> 4], axis=2)
        codes = pairs.reshape(len(codes), -1)
    weight: NDArray[np.float32] = codes.astype(np.float32) * scale[:, None]
    return weight


def finite_vector(tensors: Tensors, theirs: str, name: str) -> NDArray[np.float32]:
    """A bias or a norm's vector; raises DataError, beginning with `name`, when it is not finite."""
    values = tensors.read(theirs)
    _check_finite(name, f"tensor '{theirs}'", values[None], 0, float("inf"))
    return np.asarray(values, np.float32)


def _check_finite(name: str, what: str, values: NDArray[np.float32], begin: int, largest: float) -> None:
    """Raises DataError for NaN, infinity, or a weight that half precision cannot hold."""
    extreme = largest_magnitude(values)
    if extreme <= largest and extreme < float("inf"):
        return
    bad = np.argwhere(~(np.abs(values) <= min(largest, 3.4028235e38)))
    row, column = (int(i) for i in bad[0])
    value = values[row, column]
    remedy = f"at most {largest:,.0f} in this format; use --weights f32" if np.isfinite(value) else "finite numbers"
    raise DataError(
        f"{name}: {what} holds {value} at row {begin + row:,}, column {column:,} ({len(bad):,} such in "
        f"{len(values):,} rows); weights must be {remedy}"
    )


def _compare(file: BinaryIO, output: _Output, progress: Callable[[int], None]) -> None:
    """Reads the finished file back; raises MachineError when the disk gives back other bytes."""
    for name, entry in output.tensors.items():
        file.seek(output.data_begin + entry.begin)
        crc, left = 0, entry.end - entry.begin
        while left:
            chunk = file.read(min(left, 1 << 22))
            if not chunk:
                break
            crc, left = zlib.crc32(chunk, crc), left - len(chunk)
        if left or crc != output.crcs[name]:
            raise MachineError(f"{name}: reads back differently than it was written; check the disk and run again")
        progress(entry.end)
