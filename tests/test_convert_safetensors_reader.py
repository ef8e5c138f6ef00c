"""The library's own files are read, and a dtype that no weight has is refused by name."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from torch_files import BF16, safetensors_bytes, save_safetensors

from glmcpu.convert import stored_tensor
from glmcpu.convert.safetensors_reader import read_safetensors
from glmcpu.convert.weight_file import WeightFile
from glmcpu.errors import DataError

WEIGHTS = {
    "half": np.arange(12, dtype="f2").reshape(3, 4),
    "float": np.linspace(-1, 1, 5, dtype="f4"),
    "int8": np.array([[-7, 7]], "i1"),
}


def values(path: Path) -> dict[str, np.ndarray]:
    file = WeightFile(path)
    try:
        return {name: stored_tensor.read(tensor) for name, tensor in read_safetensors(file).items()}
    finally:
        file.close()


def test_file_of_the_library_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    weights = WEIGHTS | {
        "double": np.array([[0.5]]),
        "scalar": np.array(3, "i8"),
        "uint8": np.array([255], "u1"),
        "bool": np.array([True]),
        "int16": np.array([-2], "i2"),
        "int32": np.array([-2], "i4"),
    }
    save_file(weights, path, {"format": "pt"})
    found = values(path)
    assert found.keys() == weights.keys()
    for name, value in found.items():
        kind = {"f": "f4", "b": "u1"}.get(weights[name].dtype.kind, weights[name].dtype)
        np.testing.assert_array_equal(value, weights[name].astype(kind), strict=True)


def test_bfloat16_is_read(tmp_path: Path) -> None:
    save_safetensors(tmp_path / "model.safetensors", {"a": np.array([0x3FC0], "u2").view(BF16)})
    assert values(tmp_path / "model.safetensors")["a"] == np.float32(1.5)


def test_dtype_that_no_weight_has_is_refused_by_name(tmp_path: Path) -> None:
    header = {"a": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(header, b"12"))
    with pytest.raises(DataError, match=r"model\.safetensors: tensor 'a' is F8_E4M3; expected one of F64 F32 F16"):
        values(tmp_path / "model.safetensors")
