"""A training on disk: one file holds all that goes on from, and checkpoints hold what is used.

    OUTPUT/training_state.bin                        prefix, moments of Adam, step, losses: replaced whole
    OUTPUT/checkpoint-N/pytorch_model.bin, config.json   the prefix after step N, in the official form
    OUTPUT/pytorch_model.bin, config.json            the best prefix by the validation loss, or the last
    OUTPUT/loss.jsonl                                a line for each look at the losses

The state is a torch file of tensors, read back by the reader of convert/ that runs nothing; its JSON is one of them,
and the losses are another.
"""

import contextlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from glmcpu import files, strict_json
from glmcpu.errors import DataError, shown

FILE = "training_state.bin"
_VERSION = 1
_JSON, _LOG = "state", "log"
_COLUMNS = ("step", "loss", "learning_rate", "validation_loss")


@dataclass
class State:
    """How far a training is.

    best     the smallest validation loss
    losses   of the steps since the last line of the log
    """

    step: int = 0
    best: float | None = None
    evaluations_since_best: int = 0
    losses: list[float] = field(default_factory=list)
    log: list[dict[str, Any]] = field(default_factory=list)


def write(output: Path, tensors: dict[str, Tensor], state: State, identity: dict[str, Any]) -> None:
    """Replaces the state file; raises MachineError, and the one before stays."""
    numbers = {name: value for name, value in vars(state).items() if name != _LOG}
    document = {"version": _VERSION, "identity": identity, **numbers}
    raw = np.frombuffer(json.dumps(document).encode(), np.uint8).copy()
    rows = np.array([[line.get(key, math.nan) for key in _COLUMNS] for line in state.log], np.float64)
    # Our reader makes float32 of doubles, and takes no empty tensors.
    log = {_LOG: torch.from_numpy(rows.view(np.int64))} if state.log else {}
    with files.atomic_write(output / FILE) as file:
        _save({**tensors, **log, _JSON: torch.from_numpy(raw)}, file)


def read(output: Path) -> tuple[dict[str, Tensor], State, dict[str, Any]]:
    """(tensors, state, identity); raises DataError when there is none, or it is damaged."""
    from glmcpu.convert import stored_tensor
    from glmcpu.convert.file_kind import read_tensors
    from glmcpu.convert.weight_file import WeightFile

    path = output / FILE
    if not files.exists(path):
        raise DataError(f"{shown(output)}: holds no training to go on with; leave --resume out")
    with contextlib.closing(WeightFile(path)) as file:
        arrays = {name: stored_tensor.read(tensor) for name, tensor in read_tensors(file).items()}
    rows = arrays.pop(_LOG, np.zeros((0, len(_COLUMNS)), np.int64))
    if _JSON not in arrays or rows.dtype != np.int64 or rows.shape[1:] != (len(_COLUMNS),):
        raise _foreign(path)
    log = [_line(row) for row in rows.view(np.float64).tolist()]
    table = strict_json.parse(arrays.pop(_JSON).tobytes(), shown(path))
    if not isinstance(table, dict) or table.pop("version", None) != _VERSION:
        raise _foreign(path)
    identity = table.pop("identity", None)
    if (
        not isinstance(identity, dict)
        or table.keys() | {_LOG} != vars(State()).keys()
        or type(table["step"]) is not int
    ):
        raise _foreign(path)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}, State(**table, log=log), identity


def _line(row: list[float]) -> dict[str, Any]:
    """A line of the log out of its row; what was not measured is NaN there."""
    line = {key: value for key, value in zip(_COLUMNS, row, strict=True) if not math.isnan(value)}
    return {**line, "step": int(row[0])}


def _foreign(path: Path) -> DataError:
    return DataError(f"{shown(path)}: is no training state of this glmcpu; start anew without --resume")


def write_prefix(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Writes the official files of a prefix, each whole or not at all; a folder made for nothing is removed."""
    made = not files.exists(folder)
    try:
        with files.atomic_write(folder / "pytorch_model.bin") as file:
            _save(tensors, file)
    except BaseException:
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
    files.write_text(folder / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")


def checkpoints(output: Path) -> list[Path]:
    """The folders of prefixes in `output`, the oldest first."""
    steps = {path: path.name.removeprefix("checkpoint-") for path in output.glob("checkpoint-*")}
    return sorted((path for path, step in steps.items() if step.isdecimal()), key=lambda path: int(steps[path]))


def remove(output: Path) -> None:
    """Deletes what a training has written, and nothing else; the state last, so that a folder half emptied has one."""
    folders = checkpoints(output)
    for path in written(output):
        files.remove(path)
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def written(output: Path) -> list[Path]:
    """The files in `output` that have the names a training gives, the state last."""
    names = ("pytorch_model.bin", "config.json", "loss.jsonl", "loss.svg", FILE)
    found = [folder / name for folder in (*checkpoints(output), output) for name in names]
    return [path for path in found if files.exists(path)]


class _Watched:
    """A file that remembers what the system said of a write: torch tells of it as of an error of its own."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def _save(tensors: dict[str, Tensor], file: BinaryIO) -> None:
    """torch.save; raises OSError when the disk is full."""
    watched = _Watched(file)
    try:
        torch.save(tensors, watched)
    except RuntimeError as error:
        if watched.error is None:
            raise
        raise watched.error from error


def write_log(output: Path, state: State) -> None:
    """Writes the losses so far."""
    files.write_text(output / "loss.jsonl", "".join(json.dumps(line) + "\n" for line in state.log))
