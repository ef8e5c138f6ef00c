"""Training: the official loss, gradients and steps; resumed to the bit; nothing lost when it ends in a bad way."""

import hashlib
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import golden
import numpy as np
import pytest
from tiny_talkers import talker
from tiny_tuning import nothing, outcome, trainer

pytest.importorskip("torch", reason="torch is not installed")

import torch

from glmcpu.convert import convert
from glmcpu.model import Model
from glmcpu.models import Part
from glmcpu.tuning import Report, Settings, state
from glmcpu.tuning.data import Example, Examples
from glmcpu.tuning.training import Trainer

Backend = import_module("glmcpu.backends.torch_training").Backend


def official(checkpoint: str, folder: Path, **options: Any) -> tuple[Trainer, dict[str, Any]]:
    """A trainer with an official prefix, and what the official code computes with it."""
    arrays = golden.case(checkpoint, "loss")
    base = convert(golden.path(f"{checkpoint}/base"), folder / "base.safetensors", weights="f32")
    stored = golden.path(f"{checkpoint}/ptuning_checkpoint")
    config = json.loads((stored / "config.json").read_text())
    rows = zip(arrays["input_ids"], arrays["labels"], arrays["row_lengths"], strict=True)
    known = [Example(ids[:n].tolist(), int((labels != -100).argmax())) for ids, labels, n in rows]
    settings = Settings(
        prefix_tokens=config["pre_seq_len"],
        projection=config["prefix_projection"],
        batch=len(known),
        accumulation=1,
        steps=5,
        schedule="constant",
    )
    made = Trainer(base, folder / "out", Examples(known, 0, 0), None, settings, Backend("cpu", **options))
    table = torch.load(stored / "pytorch_model.bin", weights_only=True)
    made.encoder.load_state_dict({name.removeprefix("transformer.prefix_encoder."): t for name, t in table.items()})
    return made, arrays


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("checkpoint", ["tiny-ptuning", "tiny-ptuning-proj"])
def test_loss_and_gradients_are_the_official_ones(checkpoint: str, checkpointing: bool, tmp_path: Path) -> None:
    made, arrays = official(checkpoint, tmp_path, checkpointing=checkpointing)
    for example, expected in zip(made.examples.all, arrays["loss_each"], strict=True):
        assert float(made.loss([example]).detach()) == pytest.approx(float(expected), abs=1e-5)
    loss = made.loss(made.examples.all)
    assert float(loss.detach()) == pytest.approx(float(arrays["loss_batch"]), abs=1e-5)
    loss.backward()
    for name, parameter in made.encoder.named_parameters():
        expected = arrays[f"grad:transformer.prefix_encoder.{name}"]
        assert np.abs(parameter.grad.numpy() - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("checkpoint", ["tiny-ptuning", "tiny-ptuning-proj"])
def test_five_steps_of_adam_are_the_official_ones(checkpoint: str, tmp_path: Path, monkeypatch: Any) -> None:
    """Without dropout and clipping, as they were made."""
    made, arrays = official(checkpoint, tmp_path)
    monkeypatch.setattr("glmcpu.tuning.training.CLIP", 1e9)
    monkeypatch.setattr("glmcpu.tuning.encoder.DROPOUT", 0.0)
    losses = [made._step() for _ in range(5)]
    losses.append(float(made.loss(made.examples.all).detach()))
    np.testing.assert_allclose(losses, arrays["adamw_losses"], rtol=0, atol=1e-3)
    for name, parameter in made.encoder.named_parameters():
        expected = arrays[f"adamw_final:transformer.prefix_encoder.{name}"]
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("weights", ["int4_g32", "int8", "f32"])
def test_it_learns_and_the_base_file_stays_as_it_was(weights: str, tmp_path: Path) -> None:
    before = hashlib.sha256(talker(weights).read_bytes()).hexdigest()
    made = trainer(tmp_path, weights, steps=30, learning_rate=5e-2, save_every=30)
    with torch.no_grad():
        first = made._evaluate()
    made.run(nothing)
    assert made.state.best is not None
    assert made.state.best < 0.95 * first
    assert hashlib.sha256(talker(weights).read_bytes()).hexdigest() == before
    plain, tuned = (Model.load(talker(weights), adapter=adapter) for adapter in (None, tmp_path / "out"))
    ids = made.examples.all[0].ids
    changed = tuned.logits(ids) - plain.logits(ids)
    assert np.abs(changed).max() > 0.1
    with torch.no_grad():
        ours = made.model.forward([Part(ids, made.model.new_cache(len(ids)))], wanted=np.arange(len(ids))).numpy()
    near = 1e-3 if weights == "f32" else 0.1 * np.abs(ours).max()  # the CPU backend rounds activations
    np.testing.assert_allclose(tuned.logits(ids), ours, rtol=0, atol=near)


@pytest.mark.parametrize("interrupted", [2, 4])
@pytest.mark.parametrize(
    "options", [{}, {"projection": True, "schedule": "cosine", "warm_up": 2, "checkpointing": True}]
)
def test_a_resumed_training_ends_in_the_same_bits(interrupted: int, options: dict[str, Any], tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    trainer(whole, **options).run(nothing)
    first = trainer(parts, **options)

    class StopError(Exception):
        pass

    def step(real: Any = first._step) -> float:
        if first.state.step == interrupted:
            raise StopError
        return float(real())

    first._step = step  # type: ignore[method-assign]
    with pytest.raises(StopError):
        first.run(nothing)
    second = trainer(parts, **options)
    second.resume()
    assert second.state.step == interrupted
    second.run(nothing)
    assert outcome(parts) == outcome(whole)


def test_losses_between_two_reports_outlive_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glmcpu.tuning.training.LOG_EVERY", 4)
    made = trainer(tmp_path, validation=False, steps=3, save_every=3)
    made.state.losses = []
    for _ in range(2):
        made.state.losses.append(made._step())
    made._write_state()
    again = trainer(tmp_path, validation=False, steps=3, save_every=3)
    again.resume()
    assert again.state.losses == made.state.losses


def test_reports_have_the_losses_and_the_time_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glmcpu.tuning.training.LOG_EVERY", 3)
    reports: list[Report] = []
    made = trainer(tmp_path, evaluate_every=2)
    made.run(reports.append)
    assert [(r.step, r.validation is not None) for r in reports] == [(2, True), (3, False), (4, True), (6, True)]
    assert reports[-1].seconds_left == 0
    assert reports[0].seconds_left > 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "loss.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 3, 4, 6]
    assert lines == made.state.log


def test_the_best_prefix_by_validation_is_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, losses = (
        trainer(tmp_path, patience=2, evaluate_every=1, steps=100, save_every=50),
        iter([5.0, 3.0, 4.0, 3.5, 1.0]),
    )
    kept: list[bytes] = []

    def look(real: Any = made._evaluate) -> float:
        monkeypatch.setattr(made, "loss", lambda batch: torch.tensor(loss))
        loss = next(losses)
        found = float(real())
        monkeypatch.undo()
        kept.append(made.encoder.embedding.weight.detach().numpy().tobytes())
        return found

    made._evaluate = look  # type: ignore[method-assign]
    made.run(nothing)
    assert (made.state.step, made.state.best) == (4, 3.0)
    table = torch.load(tmp_path / "out" / "pytorch_model.bin", weights_only=True)
    (tensor,) = table.values()
    assert tensor.numpy().tobytes() == kept[1]
    assert (tmp_path / "out" / "checkpoint-4" / "pytorch_model.bin").exists()


def test_a_training_shorter_than_an_evaluation_leaves_a_prefix_too(tmp_path: Path) -> None:
    made = trainer(tmp_path, steps=3, save_every=100)
    made.run(nothing)
    assert made.state.best is not None
    assert (tmp_path / "out" / "pytorch_model.bin").exists()


def test_the_log_of_a_long_training_comes_back_to_the_bit(tmp_path: Path) -> None:
    log = [{"step": n, "loss": 1 / (n + 1), "learning_rate": 2e-2 / (n + 3)} for n in range(60_000)]
    log[7]["validation_loss"] = 0.1
    written = state.State(step=60_000, best=0.1, losses=[0.3], log=log)
    state.write(tmp_path, {"weight": torch.ones(2)}, written, {"seed": 1})
    tensors, found, identity = state.read(tmp_path)
    assert (found, identity) == (written, {"seed": 1})
    assert tensors.keys() == {"weight"}


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path: Path) -> None:
    for name in ("checkpoint-1000", "checkpoint-90", "checkpoint-x", "checkpoint-200"):
        (tmp_path / name).mkdir()
    assert [path.name for path in state.checkpoints(tmp_path)] == ["checkpoint-90", "checkpoint-200", "checkpoint-1000"]


def test_without_validation_the_last_prefix_is_left(tmp_path: Path) -> None:
    trainer(tmp_path, validation=False).run(nothing)
    files_ = [tmp_path / "out" / name / "pytorch_model.bin" for name in (".", "checkpoint-6")]
    one, other = (torch.load(path, weights_only=True) for path in files_)
    assert all(torch.equal(one[name], other[name]) for name in one)
