"""The tiny checkpoint with its tokenizer, packed in a format once in a test run, and texts for it to predict."""

import atexit
import json
import tempfile
from functools import cache
from pathlib import Path

from tiny_checkpoint import write_checkpoint

from glmcpu.convert import convert
from glmcpu.model import Model

_folder = tempfile.TemporaryDirectory(prefix="glmcpu-tests-", ignore_cleanup_errors=True)
atexit.register(_folder.cleanup)


@cache
def talker(weights: str) -> Path:
    """A packed model named talker-WEIGHTS."""
    checkpoint = Path(_folder.name) / "checkpoint"
    if not checkpoint.exists():
        write_checkpoint(checkpoint)
    return convert(checkpoint, Path(_folder.name) / f"talker-{weights}.safetensors", weights=weights)


@cache
def loaded(weights: str) -> Model:
    """That model, opened."""
    return Model.load(talker(weights))


def examples(folder: Path, n: int = 6) -> Path:
    """n examples of different lengths, the third of each three with a history."""
    lines = []
    for i in range(n):
        example = {"prompt": f"hello {i}", "response": "the quick brown fox 你好 " * (1 + i % 3)}
        lines.append({**example, "history": [["你好", "hello"]]} if i % 3 == 2 else example)
    path = folder / "examples.jsonl"
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path
