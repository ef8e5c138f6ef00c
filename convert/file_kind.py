"""What a weight file really is, told from its first bytes.

Most failures of real users are here: a Git LFS pointer instead of the weights, an error page saved under the file's
name, an archive around it. Each gets its own sentence; what torch and safetensors write goes to its reader.
"""

import re

from glmcpu import limits
from glmcpu.errors import DataError

from .safetensors_reader import read_safetensors
from .stored_tensor import StoredTensor
from .torch_legacy import MAGIC, read_torch_legacy
from .torch_zip import read_torch_zip
from .weight_file import WeightFile

_HEAD_BYTES = 512
_LFS = b"version https://git-lfs"
_OTHER_FORMATS = (
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ\0", "an xz archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"Rar!", "a rar archive"),
    (b"GGUF", "a GGUF model"),
    (b"ggml", "a GGML model"),
    (b"\x89HDF", "an HDF5 file"),
)


def read_tensors(file: WeightFile) -> dict[str, StoredTensor]:
    """The tensors of a weight file of any known format; raises DataError saying what the file is instead."""
    head = file.read(0, min(_HEAD_BYTES, file.size_bytes))
    if not head:
        raise DataError(f"{file.name}: is empty; download it again")
    if file.path.suffix == ".safetensors":
        if int.from_bytes(head[:8], "little") > limits.SAFETENSORS_HEADER_BYTES:
            refuse_known(head, file.name)
        return read_safetensors(file)
    if head.startswith(b"PK"):
        return read_torch_zip(file)
    if head.startswith(MAGIC):
        return read_torch_legacy(file)
    refuse_known(head, file.name)
    if file.size_bytes < 64:
        raise DataError(f"{file.name}: {file.size_bytes} bytes are too short for a checkpoint; download it again")
    raise DataError(f"{file.name}: not a torch checkpoint (it begins with {head[:8].hex(' ')}); download it again")


def refuse_known(head: bytes, name: str) -> None:
    """Raises DataError when `head`, the first bytes of a file, are those of something people have by mistake."""
    if head.startswith(_LFS):
        stated = re.search(rb"\nsize ([0-9]{1,18})\s", head)
        real = f" of {int(stated[1]):,} bytes" if stated else ""
        raise DataError(
            f"{name}: a Git LFS pointer, not the file{real} it stands for; run `git lfs pull` in its folder"
        )
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise DataError(f"{name}: looks like an HTML page saved under this name; download the file again")
    if text.startswith((b"{", b"[")):
        raise DataError(f"{name}: looks like a JSON message saved under this name; download the file again")
    if head[257:262] == b"ustar":
        raise DataError(f"{name}: is a tar archive; unpack it, or get the files from the hub")
    for magic, what in _OTHER_FORMATS:
        if head.startswith(magic):
            raise DataError(f"{name}: is {what}; expected a checkpoint of torch or safetensors")
    if head[:1] == b"\x80" and head[1:2] <= b"\x05":
        raise DataError(f"{name}: a bare pickle, not a checkpoint of torch.save; such files are never read")
