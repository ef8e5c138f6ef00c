"""A tiny training: the talker, some examples, few steps."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_talkers import talker

pytest.importorskip("torch", reason="torch is not installed")

import torch

from glmcpu.backends.torch_training import Backend
from glmcpu.model import Model
from glmcpu.texts import COLUMNS
from glmcpu.tuning import Settings, data
from glmcpu.tuning.data import Examples
from glmcpu.tuning.training import Trainer

TINY: dict[str, Any] = {"prefix_tokens": 3, "batch": 2, "accumulation": 2, "steps": 6, "save_every": 2}


def write_examples(path: Path, n: int = 7) -> Path:
    """Questions of several lengths, all with an answer of one kind."""
    rows = [{"prompt": "hello " * (1 + i % 3), "response": f"你好 {i % 5}"} for i in range(n)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def examples(path: Path, source: int = 64, target: int = 64) -> Examples:
    words = Model.load(talker("int8"), backend="reference", context=1)
    assert words.tokenizer
    return data.read(path, COLUMNS, words.tokenizer, words.config, source, target)


def trainer(folder: Path, weights: str = "int8", validation: bool = True, **settings: Any) -> Trainer:
    """A training that has not begun; its output is folder/out."""
    chosen = Settings(**{**TINY, **settings})
    seen = examples(write_examples(folder / "train.jsonl"))
    other = examples(write_examples(folder / "validation.jsonl", 3)) if validation else None
    backend = Backend("cpu", checkpointing=chosen.checkpointing)
    return Trainer(talker(weights), folder / "out", seen, other, chosen, backend)


def nothing(report: Any) -> None:
    """No report."""


def outcome(folder: Path) -> dict[str, bytes]:
    """All that a training has written, but for the names of archives in torch's files."""
    found = {}
    for path in sorted((folder / "out").rglob("*")):
        if path.suffix == ".bin":
            table = torch.load(path, weights_only=True)
            found[str(path.relative_to(folder))] = b"".join(
                name.encode() + t.numpy().tobytes() for name, t in table.items()
            )
        elif path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found
