"""Each thing that is not a weight file has its own sentence, and each format finds its reader."""

import gzip
import io
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from torch_files import save_safetensors, save_torch, save_torch_legacy

from glmcpu.convert.file_kind import read_tensors
from glmcpu.convert.weight_file import WeightFile
from glmcpu.errors import DataError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1740651802\n"
WEIGHTS = {"a": np.zeros((2, 2), "f2")}


def tar_bytes() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    return file.getvalue()


def zip_bytes() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data.pkl", b"x" * 1000)
    return file.getvalue()


NOT_WEIGHTS = {
    "LFS pointer": (
        POINTER,
        "a Git LFS pointer, not the file of 1,740,651,802 bytes it stands for; run `git lfs pull`",
    ),
    "LFS pointer cut": (POINTER[:30], "a Git LFS pointer"),
    "HTML page": (b"\n<!DOCTYPE html><html>...", "looks like an HTML page"),
    "HTML page in capitals": (b"<HTML><body>404", "looks like an HTML page"),
    "XML error": (b'<?xml version="1.0"?><Error>', "looks like an HTML page"),
    "JSON error": (b'{"error": "Repository not found"}', "looks like a JSON message"),
    "empty": (b"", "is empty; download it again"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(100), "is a 7z archive"),
    "gzip": (gzip.compress(bytes(1000)), "is a gzip archive"),
    "xz": (b"\xfd7zXZ\0" + bytes(100), "is an xz archive"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(100), "is a zstd archive"),
    "tar": (tar_bytes(), "is a tar archive"),
    "GGUF": (b"GGUF\3\0\0\0" + bytes(100), "is a GGUF model"),
}
NOT_TORCH = {
    "one byte": (b"P", "1 bytes are too short"),
    "21 bytes": (b"x" * 21, "21 bytes are too short"),
    "21 bytes of a zip": (b"PK\x03\x04" + bytes(17), "truncated: expected at least 22 bytes, has 21"),
    "bare pickle": (b"\x80\x02cposix\nsystem\nX\x01\0\0\0a\x85R.", "a bare pickle"),
    "bare pickle of protocol 4": (b"\x80\x04\x95" + bytes(100), "a bare pickle"),
    "compressed zip": (zip_bytes(), "is compressed; compressed members are not accepted"),
    "something": (bytes(range(100, 200)), "not a torch checkpoint (it begins with 64 65 66"),
}
NOT_SAFETENSORS = {
    "torch zip": (b"PK\x03\x04" + bytes(100), "not a safetensors file: it states a header of"),
    "9 bytes": (bytes(9), "not a safetensors file: it states a header of 0 bytes"),
}
CASES = [
    *((f"m{suffix}", *case) for case in NOT_WEIGHTS.values() for suffix in (".bin", ".safetensors")),
    *(("m.bin", *case) for case in NOT_TORCH.values()),
    *(("m.safetensors", *case) for case in NOT_SAFETENSORS.values()),
]


@pytest.mark.parametrize(("name", "content", "fragment"), CASES)
def test_each_wrong_file_gets_its_own_sentence(name: str, content: bytes, fragment: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    file = WeightFile(tmp_path / name)
    with pytest.raises(DataError) as caught:
        read_tensors(file)
    file.close()
    message = str(caught.value)
    assert f"{name}: " in message
    assert fragment in message
    assert len(message) <= 300
    assert message.isprintable()
    assert not os.path.exists("/tmp/pwned_marker")


@pytest.mark.parametrize(
    ("name", "save"), [("m.bin", save_torch), ("m.bin", save_torch_legacy), ("m.safetensors", save_safetensors)]
)
def test_each_format_goes_to_its_reader(name: str, save: object, tmp_path: Path) -> None:
    save(tmp_path / name, WEIGHTS)  # type: ignore[operator]
    file = WeightFile(tmp_path / name)
    assert read_tensors(file)["a"].shape == (2, 2)
    file.close()
