"""Where a long calibration keeps what is done, so that one that was interrupted goes on with the next layer.

    .NAME.calibration/           beside the file NAME that is to be written
      key                        digest of everything the result depends on
      layers.0.qkv ...           the arrays of each rounded matrix, one after another
      residual-3                 what the model has computed of the text after 3 layers, (T, C) f32

Every file appears whole or not at all, and a layer is done when the residual behind it is there. A folder with another
key is emptied. The folder goes when the model is written.
"""

import contextlib
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glmcpu import files, formats, packed
from glmcpu.errors import DataError, MachineError, Notice, shown
from glmcpu.memory import alloc

_RUNNING = "running"
_KEY_BYTES = 100


class WorkFolder:
    """The folder of one calibration; `done` layers are in it. `opened` makes one."""

    def __init__(self, path: Path, layers: int, residual: tuple[int, int]) -> None:
        self.path = path
        self._residual = residual
        self._bytes = packed.count(residual) * 4
        self.done = max((n for n in self._residuals() if n <= layers), default=0)

    def keep(self, matrix: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Writes the arrays of a rounded matrix; raises MachineError when the disk refuses."""
        with files.atomic_write(self.path / matrix) as file:
            for array in arrays.values():
                file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    def arrays(self, matrix: str, kind: str, O: int, I: int) -> dict[str, NDArray[Any]]:
        """What was kept of a matrix (O, I) in format `kind`; raises DataError when it is not there any more."""
        found = {}
        with files.open_regular(self.path / matrix) as file:
            for key, (shape, dtype) in formats.load(kind).layout(O, I).items():
                found[key] = self._read(file, shape, dtype)
        return found

    def finish_layer(self, done: int, x: NDArray[np.float32]) -> None:
        """Keeps the residual x (T, C) behind `done` layers, all of whose matrices were kept."""
        with files.atomic_write(self.path / f"residual-{done}") as file:
            file.write(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)
        self.done = done
        for n in self._residuals():
            if n != done:
                files.remove(self.path / f"residual-{n}")

    def residual(self) -> NDArray[np.float32]:
        """The residual (T, C) behind the layers that are done, of which there must be one."""
        with files.open_regular(self.path / f"residual-{self.done}") as file:
            return self._read(file, self._residual, np.float32)

    def _residuals(self) -> list[int]:
        """The layers behind which there is a whole residual."""
        names = (re.fullmatch(r"residual-([0-9]{1,6})", name) for name in os.listdir(self.path))
        return [int(n[1]) for n in names if n and (self.path / n[0]).stat().st_size == self._bytes]

    def _read(self, file: Any, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
        array = alloc(shape, dtype, "what is done of a calibration")
        left = memoryview(array.reshape(-1).view(np.uint8).data)
        while len(left):
            if not (n := file.readinto(left)):
                raise DataError(f"{shown(self.path)}: a file in it is cut off; delete the folder and run again")
            left = left[n:]
        return array


@contextlib.contextmanager
def opened(target: Path, key: str, layers: int, residual: tuple[int, int]) -> Iterator[WorkFolder]:
    """The work folder for `target`, with what an earlier run of the same `key` has done; locked until the block ends.

    It stays when the block fails and is deleted when it ends well. Raises MachineError when the disk refuses, or
    another run calibrates the same target.
    """
    path = target.with_name(f".{target.name}.calibration")
    with files.atomic_write(path / _RUNNING):
        if _key(path) != key:
            if _key(path):
                warnings.warn(f"{shown(path)}: is of another calibration and starts anew", Notice, stacklevel=2)
            _empty(path)
            files.write_text(path / "key", key)
        folder = WorkFolder(path, layers, residual)
        if folder.done:
            warnings.warn(f"{shown(path)}: goes on after layer {folder.done} of {layers}", Notice, stacklevel=2)
        yield folder
    _empty(path)
    try:
        os.unlink(path / _RUNNING)
        path.rmdir()
    except OSError as error:
        raise MachineError(f"{shown(path)}: cannot be removed: {files.reason(error)}; delete it") from error


def _key(path: Path) -> str:
    """The key in the folder; empty when there is none."""
    try:
        return files.read_bytes(path / "key", _KEY_BYTES).decode("ascii", "replace")
    except DataError:
        return ""


def _empty(path: Path) -> None:
    """Removes what a calibration has put there, the key first: without it nothing of the rest counts."""
    names = [name for name in os.listdir(path) if not name.startswith((".", _RUNNING))]
    for name in sorted(names, key=lambda name: name != "key"):
        files.remove(path / name)
