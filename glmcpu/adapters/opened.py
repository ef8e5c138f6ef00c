"""The files of an adapter, open: tensors by name, and the descriptions beside them.

An adapter is a folder or one file of it. In a folder the first of these is read, and what is in it is told by the names
of its tensors alone:

    adapter_model.safetensors   adapter_model.bin      where peft writes LoRA
    the files of a checkpoint (convert/checkpoint.py)  where the official trainer writes P-Tuning

The readers are the converter's: no torch, and nothing in a file is run. They are imported when one is opened, because
the converter imports this package.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from glmcpu import files, limits
from glmcpu.errors import DataError, UsageError, printable, shown

if TYPE_CHECKING:
    from glmcpu.convert.stored_tensor import StoredTensor

Floats = NDArray[np.float32]

_PEFT = ("adapter_model.safetensors", "adapter_model.bin")
_FLOATS = ("f16", "bf16", "f32", "f64")
_ADVICE = "give an adapter's folder or weight file, fetched to this machine before"


class Opened:
    """An adapter whose files are open. `read` and `slabs` give finite float32 or raise DataError."""

    def __init__(self, folder: Path, file: str, tensors: "Mapping[str, StoredTensor]", read: tuple[Path, ...]) -> None:
        self.folder, self.tensors = folder, tensors
        self.name = shown(folder / file)
        self.files = [*read]  # every file that was read
        self.notes: list[str] = []

    def table(self, file: str) -> dict[str, Any] | None:
        """The object in a JSON file beside the weights; None when there is no such file."""
        from glmcpu.convert.checkpoint import read_table

        path = self.folder / file
        if not files.exists(path):
            return None
        if path not in self.files:
            self.files.append(path)
        table: dict[str, Any] = read_table(path, limits.CONFIG_BYTES)
        return table

    def told(self, tensor: str) -> str:
        """A tensor for an error line: its file, name, type and shape."""
        found = self.tensors[tensor]
        file = found.storage.file.name
        return f"{file}: tensor '{printable(tensor, 90)}' is {found.storage.dtype} {list(found.shape)}"

    def shape(self, tensor: str) -> tuple[int, ...]:
        """The shape of a tensor of floats."""
        found = self.tensors[tensor]
        if found.storage.dtype not in _FLOATS:
            raise DataError(f"{self.told(tensor)}; adapters are of floats: save it again without quantizing it")
        shape: tuple[int, ...] = found.shape
        return shape

    def read(self, tensor: str) -> Floats:
        """The whole tensor."""
        from glmcpu.convert import stored_tensor

        return self._finite(tensor, stored_tensor.read(self.tensors[tensor]))

    def slabs(self, tensor: str, rows: int) -> Iterator[Floats]:
        """Blocks of `rows` rows, the last may be shorter; each is valid until the next is asked for."""
        from glmcpu.convert import stored_tensor

        for slab in stored_tensor.slabs(self.tensors[tensor], rows):
            yield self._finite(tensor, slab)

    def _finite(self, tensor: str, values: Floats) -> Floats:
        if not np.isfinite(values).all():
            raise DataError(f"{self.told(tensor)} and holds NaN or infinity; its training failed, or fetch it again")
        return values


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Opened]:
    """Opens the adapter at `path`, whose files must not change until the block ends.

    Raises DataError when there is none, or a file is damaged or not what its name says; UsageError for an empty path;
    MachineError when the system refuses to read one.
    """
    from glmcpu.convert import checkpoint

    if not os.fspath(path):
        raise UsageError(f"the adapter's path is empty; {_ADVICE}")
    where = files.expanded(os.fspath(path))
    if not files.exists(where):
        raise DataError(f"{shown(where)}: no such file or folder; {_ADVICE}")
    if where.is_dir():
        folder, names = where, checkpoint.listed(where, _ADVICE)
        found = [name for name in (*_PEFT, *checkpoint.LAYOUTS) if name in names]
        if not found:
            raise DataError(f"{shown(where)}: {_missing(names)}")
        file, rest = found[0], found[1:]
    else:
        folder, file, rest = where.parent, where.name, []
        if where.suffix == ".json" and file not in checkpoint.LAYOUTS:
            raise DataError(f"{shown(where)}: describes weights and holds none; give the folder it is in")
    with contextlib.ExitStack() as stack:
        weights = checkpoint.open_weights(folder, file, stack)
        adapter = Opened(folder, file, weights.stored, weights.files)
        if not weights.stored:
            raise DataError(f"{adapter.name}: holds no tensors; the trainer saved it wrongly, let it save again")
        adapter.notes += [f"{file} is used and {name} beside it is not" for name in rest[:1]]
        yield adapter


def _missing(names: set[str]) -> str:
    """Why a folder with these names is no adapter, and which to give instead."""
    if steps := [name for name in names if name.startswith("checkpoint-") and name[11:].isdecimal()]:
        last = max(steps, key=lambda name: (len(name), name))
        return f"holds no adapter itself; give one of the {len(steps)} folders in it, such as {printable(last, 40)}"
    if "adapter_config.json" in names:
        return "adapter_config.json is here and adapter_model.bin or .safetensors is not; fetch it into the same folder"
    return "no adapter; expected adapter_model.safetensors, adapter_model.bin or pytorch_model.bin in the folder"
