"""The checkpoint format of torch before 1.6: pickles and raw data, one after another.

    magic number | protocol 1001 | facts about the machine | the dict of tensors | list of storage keys
    then for each key in the list:  number of elements, i64 | the elements, little-endian

There are no checksums; every byte must be accounted for.
"""

from typing import Any

from glmcpu import limits
from glmcpu.errors import DataError, printable

from .pickle_reader import read_pickle
from .stored_tensor import Storage, StoredTensor
from .torch_objects import StorageRef, bind, state_dict
from .weight_file import WeightFile

MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
"""The first pickle: the number 0x1950a86a20f9469cfc6c."""

_PROTOCOL = 1001


def read_torch_legacy(file: WeightFile) -> dict[str, StoredTensor]:
    """The tensors of the file by name; no data are read but the pickles. The caller has seen MAGIC.

    Raises DataError, beginning with the file's name, when it is not a whole and sound torch checkpoint.
    """
    data = file.read(0, min(file.size_bytes, limits.PICKLE_BYTES))
    protocol, at = read_pickle(data, len(MAGIC), file.name)
    machine, at = read_pickle(data, at, file.name)
    if protocol != _PROTOCOL or not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise DataError(f"{file.name}: not the legacy format of torch for little-endian machines; save it again")
    value, at = read_pickle(data, at, file.name)
    table = state_dict(value, file.name)
    keys, at = read_pickle(data, at, file.name)
    storages = _storages(file, keys, {ref.storage.key: ref.storage for ref in table.values()}, at)
    return bind(file, table, storages)


def _storages(file: WeightFile, keys: Any, refs: dict[str, StorageRef], at: int) -> dict[str, Storage]:
    """Walks the data from byte `at` on: the counts in the file and in the pickle must agree to the last byte."""
    known = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not known or sorted(keys) != sorted(refs):
        raise DataError(f"{file.name}: its list of storages is not the one its tensors name; download it again")
    storages: dict[str, Storage] = {}
    for key in keys:
        ref = refs[key]
        _require_bytes(file, at + 8)
        elements = int.from_bytes(file.read(at, 8), "little", signed=True)
        if elements != ref.elements:
            raise DataError(
                f"{file.name}: storage '{printable(key, 40)}' has {elements:,} elements in the data and "
                f"{ref.elements:,} in the pickle; download the file again"
            )
        storages[key] = Storage(file, key, ref.dtype, elements, at + 8)
        at += 8 + storages[key].size_bytes
        _require_bytes(file, at)
    if at != file.size_bytes:
        raise DataError(f"{file.name}: {file.size_bytes - at:,} extra bytes after the last storage; download it again")
    return storages


def _require_bytes(file: WeightFile, needed: int) -> None:
    if needed > file.size_bytes:
        raise DataError(
            f"{file.name}: truncated: expected at least {needed:,} bytes, has {file.size_bytes:,}; download it again"
        )
