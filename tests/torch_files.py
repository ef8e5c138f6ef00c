"""Writes checkpoints as torch.save and safetensors write them, byte for byte, without either.

Tensors are NumPy arrays by name. As in torch, an array that is a view of another shares its storage: the storage is
the array at the bottom (`base`), and offset and strides are those of the view. bfloat16 is BF16: a two-byte dtype that
NumPy does not compute with.

`ZipWriter` and `state_dict_pickle` take sizes apart from data, so that a checkpoint larger than memory can be written.
"""

import json
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

Bytes = bytes | bytearray | memoryview
BF16 = np.dtype([("bf16", "<u2")])

LEGACY_START = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03."  # magic, protocol 1001
_KINDS = {"f8": "Double", "f4": "Float", "f2": "Half", "i8": "Long", "i4": "Int", "i2": "Short", "i1": "Char"}
_KINDS |= {"u1": "Byte", "?": "Bool"}
STORAGE_TYPES = {BF16: "BFloat16Storage"} | {np.dtype(code): f"{name}Storage" for code, name in _KINDS.items()}
SAFETENSORS_TYPES = {np.dtype("f4"): "F32", np.dtype("f2"): "F16", BF16: "BF16", np.dtype("i1"): "I8"}


@dataclass(frozen=True)
class View:
    """What the pickle says of one tensor."""

    storage_type: str
    key: str
    elements: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Pickler:
    """Protocol 2, as Python's own pickler writes a state dict: every new object goes into the memo once."""

    def __init__(self) -> None:
        self.out = bytearray(b"\x80\x02")
        self.memo: dict[object, int] = {}
        self.count = 0

    def put(self, identity: object = None) -> None:
        if identity is not None:
            self.memo[identity] = self.count
        self.out += b"q%c" % self.count if self.count < 256 else b"r" + struct.pack("<I", self.count)
        self.count += 1

    def known(self, identity: object) -> bool:
        """Writes a reference to an object written before."""
        if identity not in self.memo:
            return False
        index = self.memo[identity]
        self.out += b"h%c" % index if index < 256 else b"j" + struct.pack("<I", index)
        return True

    def text(self, value: str, *, shared: bool = False) -> None:
        if shared and self.known(value):
            return
        raw = value.encode()
        self.out += b"X" + struct.pack("<I", len(raw)) + raw
        self.put(value if shared else None)

    def globally(self, module: str, name: str) -> None:
        if not self.known((module, name)):
            self.out += f"c{module}\n{name}\n".encode()
            self.put((module, name))

    def integer(self, n: int) -> None:
        if 0 <= n < 1 << 8:
            self.out += b"K%c" % n
        elif 0 <= n < 1 << 16:
            self.out += b"M" + struct.pack("<H", n)
        elif -(1 << 31) <= n < 1 << 31:
            self.out += b"J" + struct.pack("<i", n)
        else:
            raw = n.to_bytes(n.bit_length() // 8 + 1, "little", signed=True)
            self.out += b"\x8a%c" % len(raw) + raw

    def integers(self, values: tuple[int, ...]) -> None:
        if not values:
            self.out += b")"
            return
        if len(values) > 3:
            self.out += b"("
        for n in values:
            self.integer(n)
        self.out += {1: b"\x85", 2: b"\x86", 3: b"\x87"}.get(len(values), b"t")
        self.put()

    def empty_ordered_dict(self) -> None:
        self.globally("collections", "OrderedDict")
        self.out += b")R"
        self.put()

    def tensor(self, view: View, *, legacy: bool) -> None:
        """torch._utils._rebuild_tensor_v2(storage, offset, shape, stride, False, OrderedDict())."""
        if self.known(view):
            return
        self.globally("torch._utils", "_rebuild_tensor_v2")
        self.out += b"(("
        self.text("storage", shared=True)
        self.globally("torch", view.storage_type)
        self.text(view.key)
        self.text("cpu", shared=True)
        self.integer(view.elements)
        self.out += b"Nt" if legacy else b"t"
        self.put()
        self.out += b"Q"
        self.integer(view.offset)
        self.integers(view.shape)
        self.integers(view.stride)
        self.out += b"\x89"
        self.empty_ordered_dict()
        self.out += b"t"
        self.put()
        self.out += b"R"
        self.put(view)


def state_dict_pickle(views: Mapping[str, View], *, ordered: bool = False, legacy: bool = False) -> bytes:
    """The pickle of {name: tensor}, or of an OrderedDict with the '_metadata' that modules give it."""
    p = Pickler()
    if ordered:
        p.empty_ordered_dict()
    else:
        p.out += b"}"
        p.put()
    p.out += b"("
    for name, view in views.items():
        p.text(name)
        p.tensor(view, legacy=legacy)
    p.out += b"u"
    if ordered:
        p.out += b"}"
        p.put()
        p.text("_metadata")
        p.empty_ordered_dict()
        p.out += b"sb"
    return bytes(p.out + b".")


class ZipWriter:
    """torch's archive. Sizes and offsets from `full` on go into a ZIP64 field; a small `full` tries that cheaply."""

    def __init__(self, file: BinaryIO, root: str, full: int = 0xFFFFFFFF) -> None:
        self.file, self.root, self.full = file, root, full
        self.at = self.count = 0
        self.directory = bytearray()

    def add(self, name: str, size_bytes: int, chunks: Iterable[Bytes]) -> None:
        """One member of `size_bytes` bytes, given in chunks."""
        raw_name = f"{self.root}/{name}".encode()
        header_at = self.at
        big, far = size_bytes >= self.full, header_at >= self.full
        flags = 0x0808 if size_bytes else 0x0800
        zip64 = _zip64_field([size_bytes, 0] * big + [header_at] * far)
        start = header_at + 30 + len(raw_name) + len(zip64) + 4
        padding = -start % 64
        extra = zip64 + b"FB" + struct.pack("<H", padding) + b"Z" * padding
        self._write(struct.pack("<4s5H3I2H", b"PK\x03\x04", 0, flags, 0, 0, 0, 0, 0, 0, len(raw_name), len(extra)))
        self._write(raw_name + extra)
        checksum = 0
        for chunk in chunks:
            checksum = zlib.crc32(chunk, checksum)
            self._write(chunk)
        if size_bytes:
            form = "<4sI2Q" if zip64 else "<4s3I"
            self._write(struct.pack(form, b"PK\x07\x08", checksum, size_bytes, size_bytes))
        zip64 = _zip64_field([size_bytes, size_bytes] * big + [header_at] * far)
        size32, at32 = 0xFFFFFFFF if big else size_bytes, 0xFFFFFFFF if far else header_at
        lengths = (len(raw_name), len(zip64), 0, 0, 0, 0, at32)
        fields = (b"PK\x01\x02", 0, 0, flags, 0, 0, 0, checksum, size32, size32, *lengths)
        self.directory += struct.pack("<4s6H3I5H2I", *fields) + raw_name + zip64
        self.count += 1

    def close(self) -> None:
        """Writes the directory and the end records; the file stays open."""
        directory_at, size = self.at, len(self.directory)
        self._write(self.directory)
        end_at, n = self.at, self.count
        self._write(struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 0x031E, 0x2D, 0, 0, n, n, size, directory_at))
        self._write(struct.pack("<4sIQI", b"PK\x06\x07", 0, end_at, 1))
        self._write(struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, n, n, size, min(directory_at, 0xFFFFFFFF), 0))

    def _write(self, data: Bytes) -> None:
        self.file.write(data)
        self.at += memoryview(data).nbytes


def _zip64_field(values: list[int]) -> bytes:
    return struct.pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values) if values else b""


def write_torch_zip(
    file: BinaryIO,
    root: str,
    pickle: bytes,
    storages: Mapping[str, tuple[int, Iterable[Bytes]]],
    *,
    byteorder: bytes | None = b"little",
    full: int = 0xFFFFFFFF,
) -> None:
    """The records of torch.save in its order; `storages` maps keys to sizes in bytes and chunks of data."""
    archive = ZipWriter(file, root, full)
    archive.add("data.pkl", len(pickle), [pickle])
    archive.add(".format_version", 1, [b"1"])
    archive.add(".storage_alignment", 2, [b"64"])
    if byteorder is not None:
        archive.add("byteorder", len(byteorder), [byteorder])
    for key, (size_bytes, chunks) in storages.items():
        archive.add(f"data/{key}", size_bytes, chunks)
    archive.add("version", 2, [b"3\n"])
    archive.add(".data/serialization_id", 40, [b"1234567890" * 4])
    archive.close()


def save_torch(path: Path, tensors: Mapping[str, NDArray[Any]], *, ordered: bool = False) -> None:
    """torch.save(tensors, path)."""
    views, bases = views_of(tensors)
    storages = {key: (base.nbytes, [base.tobytes()]) for key, base in bases.items()}
    with path.open("wb") as file:
        write_torch_zip(file, path.stem, state_dict_pickle(views, ordered=ordered), storages)


def save_torch_legacy(path: Path, tensors: Mapping[str, NDArray[Any]], *, ordered: bool = False) -> None:
    """torch.save(tensors, path, _use_new_zipfile_serialization=False)."""
    views, bases = views_of(tensors)
    with path.open("wb") as file:
        file.write(legacy_head(state_dict_pickle(views, ordered=ordered, legacy=True), list(bases)))
        for base in bases.values():
            file.write(struct.pack("<q", base.size) + base.tobytes())


def legacy_head(pickle: bytes, keys: list[str]) -> bytes:
    """The five pickles in front of the data."""
    machine, names = Pickler(), Pickler()
    machine.out += b"}("
    machine.text("protocol_version")
    machine.integer(1001)
    machine.text("little_endian")
    machine.out += b"\x88"
    machine.text("type_sizes")
    machine.out += b"}u"
    names.out += b"]("
    for key in keys:
        names.text(key)
    names.out += b"e"
    return b"".join([LEGACY_START, machine.out, b".", pickle, names.out, b"."])


def views_of(tensors: Mapping[str, NDArray[Any]]) -> tuple[dict[str, View], dict[str, NDArray[Any]]]:
    """The views, and the flat storages by key; keys count up in order of appearance."""
    views: dict[str, View] = {}
    bases: dict[str, NDArray[Any]] = {}
    keys: dict[int, str] = {}
    for name, array in tensors.items():
        base = array
        while isinstance(base.base, np.ndarray):
            base = base.base
        if id(base) not in keys:
            keys[id(base)] = str(len(keys))
            bases[keys[id(base)]] = base.reshape(-1)
        offset = (array.ctypes.data - base.ctypes.data) // base.itemsize
        stride = tuple(n // base.itemsize for n in array.strides)
        kind = STORAGE_TYPES[array.dtype]
        views[name] = View(kind, keys[id(base)], base.size, offset, array.shape, stride)
    return views, bases


def safetensors_bytes(header: Mapping[str, Any], data: bytes) -> bytes:
    """A file of this header, padded to 8 bytes, and these data."""
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def save_safetensors(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """safetensors.numpy.save_file(tensors, path), and bfloat16 too."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, array in tensors.items():
        entry = {"dtype": SAFETENSORS_TYPES[array.dtype], "shape": list(array.shape)}
        header[name] = {**entry, "data_offsets": [len(data), len(data) + array.nbytes]}
        data += array.tobytes()
    path.write_bytes(safetensors_bytes(header, data))


def save_index(path: Path, weight_map: Mapping[str, str]) -> None:
    path.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": dict(weight_map)}))
