"""A Hugging Face folder as one table of tensors, whatever files they are in.

    config.json                          required
    tokenizer_config.json, ice_text.model    where present
    the weights, the first of these that is there (the order of transformers):
      model.safetensors                  one file
      model.safetensors.index.json       shards: {"weight_map": {tensor: file}}
      pytorch_model.bin                  one file, the zip or the legacy format of torch
      pytorch_model.bin.index.json       shards

Opening reads headers and pickles only and checks every size in them; values are read a slab at a time. What tensors a
model must have is not known here: the converter compares with its config. metadata.total_size of an index is ignored,
the official one is stale. An adapter's folder (glmcpu/adapters) is read through the same functions.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from glmcpu import limits, strict_json
from glmcpu.errors import DataError, MachineError, printable, shown
from glmcpu.files import read_bytes, reason

from . import stored_tensor
from .file_kind import read_tensors, refuse_known
from .stored_tensor import StoredTensor
from .weight_file import WeightFile

LAYOUTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_NAME_CHARS = 255


@dataclass(frozen=True)
class TensorInfo:
    """What a file says of a tensor. Names with equal `storage` are one and the same tensor (tied)."""

    name: str
    dtype: str  # f64 f32 f16 bf16 i64 i32 i16 i8 u8 bool
    shape: tuple[int, ...]
    file: str
    storage: tuple[str, str, int, tuple[int, ...], tuple[int, ...]]  # file, key, offset, shape, stride


@dataclass(frozen=True)
class Weights:
    """What is in the open weight files of one layout."""

    files: tuple[Path, ...]  # every file read, the index too
    stored: dict[str, StoredTensor]
    promised: dict[str, str]  # tensor -> file, where the index names one that no file holds


@dataclass
class Checkpoint(contextlib.AbstractContextManager["Checkpoint"]):
    """An open checkpoint. Leaving the `with` block closes its files; reading is for one thread at a time."""

    config: dict[str, Any]  # config.json, with the official keys
    tokenizer_config: dict[str, Any] | None
    tokenizer: Path | None  # ice_text.model
    files: tuple[Path, ...]  # every file read but the tokenizer, sorted by name
    notes: tuple[str, ...]  # sentences for the user: what was found and not used
    tensors: Mapping[str, TensorInfo]
    promised: Mapping[str, str]  # tensor -> file, where the index names one that no file holds
    _stored: dict[str, StoredTensor] = field(repr=False)
    _files: contextlib.ExitStack = field(repr=False)

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def slabs(self, name: str, rows: int) -> Iterator[NDArray[Any]]:
        """Consecutive blocks of `rows` rows of tensor `name`, the last may be shorter; C-contiguous.

        Floats come as float32, integers as stored. A slab is valid until the next is asked for. Raises DataError when
        the archive's checksum does not match, MachineError when the file cannot be read or changes meanwhile.
        """
        return stored_tensor.slabs(self._stored[name], rows)

    def read(self, name: str) -> NDArray[Any]:
        """The whole tensor `name`, in memory of its own; dtypes and errors as `slabs`."""
        return stored_tensor.read(self._stored[name])

    def missing(self, name: str) -> str:
        """Why tensor `name` is not in `tensors`, to end an error sentence with."""
        if name in self.promised:
            return f"its index promises it in {printable(self.promised[name], 80)}, which does not hold it"
        return "no weight file of the folder holds it"


def open_checkpoint(folder: Path) -> Checkpoint:
    """Opens the checkpoint in `folder`.

    Raises DataError when there is none, or a file of it is missing, damaged or not what its name says; MachineError
    when the system refuses to read one.
    """
    names = listed(folder, "give the folder that has config.json and the weights")
    if "config.json" not in names:
        raise DataError(f"{shown(folder)}: config.json is missing; fetch the whole model folder from the hub")
    config = read_table(folder / "config.json", limits.CONFIG_BYTES)
    read = [folder / "config.json"]
    tokenizer_config = None
    if "tokenizer_config.json" in names:
        read.append(folder / "tokenizer_config.json")
        tokenizer_config = read_table(read[-1], limits.CONFIG_BYTES)
    layouts = [name for name in LAYOUTS if name in names]
    if not layouts:
        raise DataError(f"{shown(folder)}: no weights; expected pytorch_model*.bin or model*.safetensors in the folder")
    other = [name for name in layouts[1:] if name.split(".")[0] != layouts[0].split(".")[0]]
    with contextlib.ExitStack() as files:
        weights = open_weights(folder, layouts[0], files)
        return Checkpoint(
            config=config,
            tokenizer_config=tokenizer_config,
            tokenizer=folder / "ice_text.model" if "ice_text.model" in names else None,
            files=tuple(sorted([*read, *weights.files])),
            notes=tuple(f"{layouts[0]} is used and {name} beside it is not" for name in other[:1]),
            tensors={name: _info(name, tensor) for name, tensor in weights.stored.items()},
            _stored=weights.stored,
            promised=weights.promised,
            _files=files.pop_all(),
        )


def open_weights(folder: Path, layout: str, files: contextlib.ExitStack) -> Weights:
    """Opens a weight file of the folder, or an index's shards; `files` closes them. Errors as of open_checkpoint."""
    promised = _weight_map(folder / layout) if layout.endswith(".index.json") else {}
    shards = sorted(set(promised.values())) or [layout]
    _require_present(folder, shards)
    stored = _read_all(folder, shards, files)
    return Weights(
        files=tuple(folder / name for name in [layout] * bool(promised) + shards),
        stored=stored,
        promised={name: file for name, file in promised.items() if name not in stored},
    )


def listed(folder: Path, advice: str) -> set[str]:
    """The names in a folder; raises DataError with `advice` when it is none, MachineError when we may not look."""
    try:
        return set(os.listdir(folder))
    except FileNotFoundError as error:
        raise DataError(f"{shown(folder)}: no such folder; {advice}") from error
    except NotADirectoryError as error:
        raise DataError(f"{shown(folder)}: is a file; {advice}") from error
    except (OSError, ValueError) as error:
        raise MachineError(f"{shown(folder)}: cannot be read: {reason(error)}; {advice}") from error


def _read_all(folder: Path, shards: list[str], files: contextlib.ExitStack) -> dict[str, StoredTensor]:
    stored: dict[str, StoredTensor] = {}
    for shard in shards:
        file = files.enter_context(contextlib.closing(WeightFile(folder / shard)))
        for name, tensor in read_tensors(file).items():
            if name in stored:
                raise DataError(
                    f"{file.name}: tensor '{printable(name, 80)}' is also in {stored[name].storage.file.path.name}; "
                    "expected every tensor in one file"
                )
            stored[name] = tensor
    if len(stored) > limits.TENSORS:
        raise DataError(f"{shown(folder)}: {len(stored):,} tensors, and at most {limits.TENSORS:,} are accepted")
    return stored


def _info(name: str, tensor: StoredTensor) -> TensorInfo:
    storage = tensor.storage
    file = storage.file.path.name
    identity = (file, storage.key, tensor.offset, tensor.shape, tensor.stride)
    return TensorInfo(name, storage.dtype, tensor.shape, file, identity)


def read_table(path: Path, limit: int) -> dict[str, Any]:
    """The object in a JSON file; raises DataError when there is none."""
    data = read_bytes(path, limit)
    if not data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"{", b"[")):
        refuse_known(data, shown(path))
    value = strict_json.parse(data, shown(path))
    if not isinstance(value, dict):
        raise DataError(f"{shown(path)}: holds a JSON {type(value).__name__}; expected an object, get the file again")
    return value


def _weight_map(path: Path) -> dict[str, str]:
    """Tensor name -> file name of an index. Only plain names of files in the same folder get through."""
    table = read_table(path, limits.INDEX_BYTES).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise DataError(f"{shown(path)}: has no weight_map; get the file again")
    if len(table) > limits.TENSORS:
        raise DataError(f"{shown(path)}: {len(table):,} tensors, and at most {limits.TENSORS:,} are accepted")
    for file in table.values():
        if not isinstance(file, str) or not _is_plain(file):
            shown_file = printable(file, 60)
            raise DataError(
                f"{shown(path)}: refuses '{shown_file}' as a weight file; expected the name of a file beside it"
            )
    if len(set(table.values())) > limits.CHECKPOINT_FILES:
        raise DataError(
            f"{shown(path)}: more than {limits.CHECKPOINT_FILES} weight files; expected fewer, larger shards"
        )
    return table


def _is_plain(file: str) -> bool:
    return (
        1 <= len(file) <= _NAME_CHARS
        and file.isprintable()
        and not set(file) & set('/\\:*?"<>|')
        and not file.startswith(".")
    )


def _require_present(folder: Path, shards: list[str]) -> None:
    absent = [name for name in shards if not (folder / name).exists()]
    if absent:
        number = shards.index(absent[0]) + 1
        raise DataError(
            f"{shown(folder / absent[0])}: shard {number} of {len(shards)} is missing "
            f"({len(shards) - len(absent)} are here); fetch it into the same folder"
        )
