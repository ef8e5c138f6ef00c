"""Trainings that end in a bad way, or go on from something else: nothing saved is lost, and one line says why."""

import errno
import io
import os
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_talkers import talker
from tiny_tuning import examples, nothing, outcome, trainer, write_examples
from torch_files import save_torch

pytest.importorskip("torch", reason="torch is not installed")

import torch

from glmcpu import files, memory
from glmcpu.errors import DataError, MachineError, UsageError
from glmcpu.tuning import Settings, state
from glmcpu.tuning.training import Trainer

Backend = import_module("glmcpu.backends.torch_training").Backend


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_it_and_the_last_checkpoint_stays(value: float, tmp_path: Path) -> None:
    made = trainer(tmp_path)

    def loss(batch: Any, generator: Any = None, real: Any = made.loss) -> Any:
        return real(batch, generator) * (value if made.state.step == 4 and generator else 1)

    made.loss = loss  # type: ignore[method-assign]
    with pytest.raises(
        UsageError, match=r"the loss is (nan|inf) in step 5, .* lower --learning-rate .* checkpoint-4 stays$"
    ):
        made.run(nothing)
    for _, t in torch.load(tmp_path / "out" / "checkpoint-4" / "pytorch_model.bin", weights_only=True).items():
        assert torch.isfinite(t).all()
    _, kept, _ = state.read(tmp_path / "out")
    assert kept.step == 4


def test_a_gradient_that_is_no_number_ends_it_before_the_prefix_is_spoilt(tmp_path: Path) -> None:
    made = trainer(tmp_path, validation=False)
    made.encoder.embedding.weight.register_hook(lambda grad: grad * float("nan"))
    before = made.encoder.embedding.weight.detach().clone()
    with pytest.raises(UsageError, match=r"the gradient is nan in step 1, .* nothing was saved yet"):
        made.run(nothing)
    assert torch.equal(made.encoder.embedding.weight.detach(), before)


class FullDisk(io.FileIO):
    """A file on a disk with room for so many bytes more."""

    def __init__(self, path: Path, room: int) -> None:
        super().__init__(path, "xb")
        self.room = room

    def write(self, data: Any) -> int:
        self.room -= memoryview(data).nbytes
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


@pytest.mark.parametrize(
    ("name", "room"),
    [
        *((name, room) for name in ("pytorch_model.bin", "training_state.bin") for room in (0, 20, 700, 1300)),
        ("config.json", 0),
        ("loss.jsonl", None),  # it cannot even be made
    ],
)
def test_a_full_disk_at_a_checkpoint_leaves_the_one_before(
    name: str, room: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, real = trainer(tmp_path, validation=False), files._open_new

    def open_new(path: Path) -> Any:
        if made.state.step != 4 or f".{name}." not in path.name:
            return real(path)
        if room is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return io.BufferedWriter(FullDisk(path, room), 1)

    monkeypatch.setattr(files, "_open_new", open_new)
    with pytest.raises(MachineError, match="no space left"):
        made.run(nothing)
    monkeypatch.undo()
    assert not list(tmp_path.rglob("*glmcpu-partial"))
    table = torch.load(tmp_path / "out" / "checkpoint-2" / "pytorch_model.bin", weights_only=True)
    assert len(table) == 1
    again = trainer(tmp_path, validation=False)
    again.resume()
    assert again.state.step == (4 if name == "loss.jsonl" else 2)
    again.run(nothing)
    whole = tmp_path / "whole"
    whole.mkdir()
    trainer(whole, validation=False).run(nothing)
    assert outcome(tmp_path) == outcome(whole)


@pytest.mark.parametrize(
    ("change", "fact"),
    [({"batch": 3}, "its training has batch 2 and this one 3"), ({"seed": 1}, "seed 42 and this one 1")],
)
def test_other_settings_do_not_go_on(change: dict[str, Any], fact: str, tmp_path: Path) -> None:
    trainer(tmp_path).run(nothing)
    with pytest.raises(UsageError, match=fact):
        trainer(tmp_path, **change).resume()


def test_other_data_or_another_base_do_not_go_on(tmp_path: Path) -> None:
    trainer(tmp_path).run(nothing)
    with pytest.raises(UsageError, match="its training has base"):
        trainer(tmp_path, "int4").resume()
    made = trainer(tmp_path)
    made.examples = examples(write_examples(tmp_path / "other.jsonl", 4))
    with pytest.raises(UsageError, match="its training has examples"):
        made.resume()


def test_without_a_training_there_is_nothing_to_go_on_with(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no training to go on with; leave --resume out"):
        trainer(tmp_path).resume()


@pytest.mark.parametrize(
    "table", [{}, {"state": np.frombuffer(b"{}", np.uint8)}, {"state": np.frombuffer(b"[", np.uint8)}]
)
def test_another_file_in_place_of_the_state_is_refused(table: dict[str, Any], tmp_path: Path) -> None:
    made = trainer(tmp_path)
    (tmp_path / "out").mkdir()
    save_torch(tmp_path / "out" / state.FILE, table | {"weight": np.zeros(3, np.float32)})
    with pytest.raises(DataError, match=r"training_state\.bin"):
        made.resume()


@pytest.mark.parametrize("damage", [lambda data: data[:100], lambda data: data[:-9], lambda data: b"x" * len(data)])
def test_a_damaged_state_is_refused(damage: Any, tmp_path: Path) -> None:
    trainer(tmp_path).run(nothing)
    path = tmp_path / "out" / state.FILE
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"training_state\.bin"):
        trainer(tmp_path).resume()


def test_a_folder_that_cannot_be_written_is_found_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trainer(tmp_path)
    monkeypatch.setattr(made, "_step", lambda: pytest.fail("a step was made"))
    (tmp_path / "out").write_text("a file")
    with pytest.raises(MachineError, match="cannot be written"):
        made.run(nothing)


def test_too_little_memory_is_said_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = examples(write_examples(tmp_path / "train.jsonl"))
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    with pytest.raises(MachineError, match=r"tuning .*talker-int8\.safetensors needs"):
        Trainer(talker("int8"), tmp_path / "out", seen, None, Settings(), Backend("cpu"))
