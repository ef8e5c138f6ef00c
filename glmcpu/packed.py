"""The packed model: ONE safetensors file with everything a conversation needs.

    | u64 | JSON header, padded so that data begins at a multiple of 64 | tensors, end to end |

    embedding.codes  embedding.scales  layers.0.qkv.codes  ...     the arrays of each matrix's format
    layers.0.qkv.bias  layers.0.attention_norm.scale  ...          float32
    tokenizer                                                      the tokenizer's own file, as bytes

Tensors are in the byte order the kernels read, so opening is mmap: no copy, no repacking. Tensors whose size is a
multiple of 64 come first, then the others by falling item size, so each one is aligned for its type. The metadata:

    format_version  "1"            generation  "chatglm"       weights  the format asked for
    config          JSON           formats     JSON: matrix -> format, matrices may differ
    source          JSON: where the weights came from, size and SHA-256 of each file
    checksums       JSON: tensor -> CRC-32 of its bytes        digest   SHA-256 of this header without the digest
"""

import hashlib
import json
import mmap
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray

from glmcpu import formats, pages, strict_json
from glmcpu.errors import DataError, MachineError, printable, shown
from glmcpu.files import open_regular, reason
from glmcpu.formats import Weight
from glmcpu.safetensors_header import Entry, Header, read_header

VERSION = "1"
ALIGNMENT = 64
TOKENIZER = "tokenizer"
DTYPES: dict[str, type[np.generic]] = {"F32": np.float32, "F16": np.float16, "I8": np.int8, "U8": np.uint8}
_NAMES = {np.dtype(kind): name for name, kind in DTYPES.items()}
_CHUNK_BYTES = 1 << 24
_KEYS = ("checksums", "config", "digest", "format_version", "formats", "generation", "source", "weights")


@dataclass(frozen=True)
class Contents:
    """What a packed file's metadata says."""

    generation: str
    weights: str
    config: Mapping[str, Any]
    formats: Mapping[str, str]
    source: Mapping[str, Any]
    checksums: Mapping[str, str]


def dtype_name(dtype: np.dtype[Any]) -> str:
    """The safetensors name of a NumPy dtype."""
    return _NAMES[np.dtype(dtype)]


def header_bytes(contents: Contents, tensors: Mapping[str, Entry]) -> bytes:
    """The length and the padded JSON that begin a packed file."""
    metadata = {f.name: getattr(contents, f.name) for f in fields(contents)} | {"format_version": VERSION}
    texts = {key: value if isinstance(value, str) else _json(value) for key, value in metadata.items()}
    table = {
        name: {"dtype": e.dtype, "shape": list(e.shape), "data_offsets": [e.begin, e.end]}
        for name, e in tensors.items()
    }
    texts["digest"] = _digest(texts, tensors)
    text = _json({"__metadata__": texts} | table).encode()
    padded = text.ljust(-(-(len(text) + 8) // ALIGNMENT) * ALIGNMENT - 8)
    return len(padded).to_bytes(8, "little") + padded


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _digest(metadata: Mapping[str, str], tensors: Mapping[str, Entry]) -> str:
    table = {name: [e.dtype, list(e.shape), e.begin, e.end] for name, e in tensors.items()}
    return hashlib.sha256(_json([dict(metadata), table]).encode()).hexdigest()


class PackedFile:
    """An open packed model. Its arrays are read-only views of the mapped file and stay valid while it is referenced."""

    def __init__(self, path: Path) -> None:
        """Raises DataError when it is not a packed model of this version, MachineError when it cannot be mapped."""
        self.path = path
        self._name = shown(path)
        with open_regular(path) as file:
            self.size_bytes = os.fstat(file.fileno()).st_size
            self._header = read_header(file, self.size_bytes, str(path))
            self.contents = _contents(self._header, self._name)
            self._check_tensors()
            try:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                pages.ask_for_large_pages(self._map)
            except (OSError, ValueError) as error:
                raise MachineError(
                    f"{self._name}: {self.size_bytes:,} bytes cannot be mapped: {reason(error)}; "
                    "close other programs or raise the limit of address space"
                ) from error

    @property
    def formats(self) -> Mapping[str, str]:
        """Matrix -> format."""
        return self.contents.formats

    def tensors(self) -> Mapping[str, Entry]:
        """All tensors, in file order."""
        return self._header.tensors

    def raw(self, name: str) -> NDArray[np.uint8]:
        """A tensor's bytes."""
        entry = self._header.tensors[name]
        return np.frombuffer(self._map, np.uint8, entry.end - entry.begin, self._header.data_begin + entry.begin)

    def array(self, name: str, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
        """A tensor, which must have this shape and dtype; raises DataError when it is absent or another."""
        entry = self._header.tensors.get(name)
        if entry is None:
            raise DataError(f"{self._name}: tensor '{name}' is missing; convert the model again")
        if entry.shape != shape or DTYPES[entry.dtype] is not dtype:
            raise DataError(
                f"{self._name}: tensor '{name}' is {entry.dtype} {list(entry.shape)}, expected "
                f"{dtype_name(np.dtype(dtype))} {list(shape)}; convert the model again"
            )
        array = np.frombuffer(self._map, dtype, count(shape), self._header.data_begin + entry.begin)
        return array.reshape(shape)

    def weight(self, name: str, O: int, I: int) -> Weight:
        """A matrix (O, I) in its format, with its bias (zeros where it has none)."""
        kind = self.contents.formats.get(name)
        if kind is None:
            raise DataError(f"{self._name}: the header states no format for '{name}'; convert the model again")
        layout = formats.load(kind).layout(O, I)
        arrays = {key: self.array(f"{name}.{key}", shape, dtype) for key, (shape, dtype) in layout.items()}
        has_bias = f"{name}.bias" in self._header.tensors
        bias = self.vector(f"{name}.bias", O) if has_bias else np.zeros(O, np.float32)
        bias.flags.writeable = False  # one Numba type for all
        return Weight(kind, arrays, bias, O, I, name)

    def vector(self, name: str, n: int) -> NDArray[np.float32]:
        """A float32 tensor (n,)."""
        return self.array(name, (n,), np.float32)

    def tokenizer(self) -> bytes | None:
        """The tokenizer's file, None when the model speaks ids only."""
        return self.raw(TOKENIZER).tobytes() if TOKENIZER in self._header.tensors else None

    def _check_tensors(self) -> None:
        for name, entry in self._header.tensors.items():
            kind = DTYPES.get(entry.dtype)
            if kind is None:
                raise DataError(
                    f"{self._name}: tensor '{name}' is {entry.dtype}; packed models hold {' '.join(DTYPES)}"
                )
            if (self._header.data_begin + entry.begin) % np.dtype(kind).itemsize:
                raise DataError(f"{self._name}: tensor '{name}' is not aligned; convert the model again")
            if name not in self.contents.checksums:
                raise DataError(
                    f"{self._name}: the header holds no checksum of tensor '{name}'; convert the model again"
                )


def verify(path: Path, progress: Callable[[int, int], None] | None = None) -> PackedFile:
    """Compares every tensor with its checksum; raises DataError naming the first that differs or is not finite.

    The safetensors library reads the header too: two independent readers must see the same tensors.
    progress(bytes done, bytes in all).
    """
    packed = PackedFile(path)
    name = shown(path)
    try:
        with safetensors.safe_open(path, framework="numpy") as other:
            seen = {key: tuple(other.get_slice(key).get_shape()) for key in other.keys()}  # noqa: SIM118
    except MemoryError as error:  # it maps the file a second time
        raise MachineError(
            f"{name}: no address space for {packed.size_bytes:,} bytes twice; raise its limit"
        ) from error
    except safetensors.SafetensorError as error:
        raise DataError(f"{name}: the safetensors library refuses it: {printable(error)}; convert it again") from error
    if seen != {key: entry.shape for key, entry in packed.tensors().items()}:
        raise DataError(f"{name}: the safetensors library reads other tensors from it; convert the model again")
    done = 0
    for key, entry in packed.tensors().items():
        crc, finite = 0, True
        data = packed.raw(key).data
        for begin in range(0, len(data), _CHUNK_BYTES):
            chunk = data[begin : begin + _CHUNK_BYTES]
            crc = zlib.crc32(chunk, crc)
            finite = finite and _is_finite(chunk, entry.dtype)
            if progress:
                progress(done + begin, packed.size_bytes)
        if f"{crc:08x}" != packed.contents.checksums[key]:
            raise DataError(
                f"{name}: tensor '{key}' is damaged: checksum {crc:08x}, expected "
                f"{printable(packed.contents.checksums[key], 8)}; copy or convert the model again"
            )
        if not finite:
            raise DataError(f"{name}: tensor '{key}' holds NaN or infinity; convert the model again")
        done += entry.end - entry.begin
    if progress:
        progress(packed.size_bytes, packed.size_bytes)
    return packed


def _is_finite(data: memoryview, dtype: str) -> bool:
    if dtype == "F16":  # all exponent bits set; three times as fast as isfinite
        return not np.any(np.frombuffer(data, np.uint16) & 0x7C00 == 0x7C00)
    return dtype != "F32" or bool(np.isfinite(np.frombuffer(data, np.float32)).all())


def count(shape: tuple[int, ...]) -> int:
    """Elements of a shape, in Python integers."""
    total = 1
    for n in shape:
        total *= n
    return total


def _contents(header: Header, name: str) -> Contents:
    metadata = dict(header.metadata)
    if "format_version" not in metadata:
        raise DataError(f"{name}: is not a packed model; make one with: glmcpu convert SOURCE")
    version = metadata["format_version"]
    if version != VERSION:
        raise DataError(
            f"{name}: written in format {printable(version)}, and this glmcpu reads {VERSION}; "
            "upgrade glmcpu or convert the model again"
        )
    if missing := [key for key in _KEYS if key not in metadata]:
        raise DataError(f"{name}: the header lacks {' '.join(missing)}; convert the model again")
    digest = metadata.pop("digest")
    if digest != _digest(metadata, header.tensors):
        raise DataError(f"{name}: the header is damaged (its digest differs); copy or convert the model again")
    tables = {}
    for key in ("config", "formats", "source", "checksums"):
        tables[key] = strict_json.parse(metadata[key].encode(), f"{name}: {key}")
        if not isinstance(tables[key], dict):
            raise DataError(f"{name}: '{key}' in the header is not an object; convert the model again")
    for key in ("formats", "checksums"):
        if not all(isinstance(text, str) for text in tables[key].values()):
            raise DataError(f"{name}: '{key}' in the header must map names to texts; convert the model again")
    if unknown := set(tables["formats"].values()) - set(formats.names()):
        raise DataError(
            f"{name}: weights in format {printable(min(unknown), 40)!r}, and this glmcpu reads "
            f"{' '.join(formats.names())}; upgrade glmcpu or convert the model again"
        )
    return Contents(metadata["generation"], metadata["weights"], **tables)
