"""A tiny training: the talker, some examples, few steps."""

import json
from pathlib import Path
from typing import Any

from tiny_talkers import talker

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
    from glmcpu.model import Model

    words = Model.load(talker("int8"), backend="reference", context=1)
    assert words.tokenizer
    return data.read(path, COLUMNS, words.tokenizer, words.config, source, target)


def trainer(folder: Path, weights: str = "int8", validation: bool = True, **settings: Any) -> Trainer:
    """A training that has not begun; its output is folder/out."""
    from glmcpu.backends.torch_training import Backend

    chosen = Settings(**{**TINY, **settings})
    seen = examples(write_examples(folder / "train.jsonl"))
    other = examples(write_examples(folder / "validation.jsonl", 3)) if validation else None
    backend = Backend("cpu", checkpointing=chosen.checkpointing)
    return Trainer(talker(weights), folder / "out", seen, other, chosen, backend)
