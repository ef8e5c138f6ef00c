"""The tensors of one safetensors file, as views of its bytes. The format is told in glmcpu.safetensors_header."""

import math

from glmcpu.errors import DataError, printable
from glmcpu.safetensors_header import read_header

from .stored_tensor import Storage, StoredTensor
from .weight_file import WeightFile

_DTYPES = {
    "F64": "f64",
    "F32": "f32",
    "F16": "f16",
    "BF16": "bf16",
    "I64": "i64",
    "I32": "i32",
    "I16": "i16",
    "I8": "i8",
    "U8": "u8",
    "BOOL": "bool",
}


def read_safetensors(file: WeightFile) -> dict[str, StoredTensor]:
    """The tensors of the file by name; raises DataError, beginning with the file's name, when it is not sound."""
    header = read_header(file.file, file.size_bytes, file.name)
    file.check_unchanged()
    tensors = {}
    for name, entry in header.tensors.items():
        if entry.dtype not in _DTYPES:
            raise DataError(
                f"{file.name}: tensor '{printable(name, 80)}' is {entry.dtype}; expected one of {' '.join(_DTYPES)}"
            )
        storage = Storage(file, name, _DTYPES[entry.dtype], math.prod(entry.shape), header.data_begin + entry.begin)
        tensors[name] = StoredTensor(storage, 0, entry.shape, _row_major(entry.shape))
    return tensors


def _row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
