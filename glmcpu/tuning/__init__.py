"""P-Tuning v2: a prefix for a frozen, packed model is learnt from examples. Needs the extra "tune".

tune("persona.jsonl", "chatglm-6b-int4_g32", "persona", settings=Settings(steps=1000))
Model.load("chatglm-6b-int4_g32", adapter="persona")
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from glmcpu import files, store
from glmcpu.backends.torch_training import Backend
from glmcpu.errors import UsageError, shown
from glmcpu.model import Model
from glmcpu.rounds import require_tokenizer
from glmcpu.texts import COLUMNS, Columns
from glmcpu.tuning import data, state
from glmcpu.tuning.settings import Settings
from glmcpu.tuning.state import FILE, State
from glmcpu.tuning.training import Report, Trainer

__all__ = ["Report", "Settings", "State", "tune"]

_Path = str | os.PathLike[str]


def tune(
    examples: _Path,
    base: _Path,
    output: _Path,
    *,
    settings: Settings,
    validation: _Path | None = None,
    columns: Columns = COLUMNS,
    device: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    report: Callable[[Report], None] = lambda report: None,
    note: Callable[[str], None] = lambda text: None,
) -> State:
    """Trains a prefix for the packed model `base` and writes it to the folder `output`; returns how it went.

    examples, validation   JSONL, a question and its answer a line (texts.py), its keys as `columns` say
    device, dtype          as for Model.load with the torch backend; on a GPU bfloat16 if None
    resume                 go on from the state in `output`, with the same settings and data
    overwrite              begin anew, whatever training `output` holds
    report(Report)         every ten steps; note(text): what was read

    Raises DataError for what is wrong with a file, naming the line, UsageError for settings and for a loss that is no
    number any more, MachineError for memory and disk. The base model's file is only read.
    """
    folder = _folder(output, resume, overwrite)
    if validation is None and (settings.patience is not None or settings.evaluate_every is not None):
        raise UsageError("patience and evaluate_every are for the validation loss; give validation examples too")
    backend = Backend(device, dtype, settings.checkpointing)
    path, words = store.find(base), Model.load(base, backend="reference", context=1)
    require_tokenizer(words)
    tokenizer: Any = words.tokenizer
    if threads is not None:
        torch.set_num_threads(threads)
    lengths = settings.source_tokens, settings.target_tokens

    def read(file: _Path, what: str) -> data.Examples:
        found = data.read(files.expanded(os.fspath(file)), columns, tokenizer, words.config, *lengths)
        note(f"{what}: {found.describe(*lengths)}")
        return found

    seen, held_out = read(examples, "training"), None if validation is None else read(validation, "validation")
    trainer = Trainer(path, folder, seen, held_out, settings, backend)
    if resume:
        trainer.resume()
        note(f"goes on after step {trainer.state.step:,} of {trainer.settings.steps:,}")
    elif overwrite:
        state.remove(folder)
    return trainer.run(report)


def _folder(output: _Path, resume: bool, overwrite: bool) -> Path:
    """The folder to write to; raises UsageError when something would be lost there."""
    if not os.fspath(output):
        raise UsageError("the output's name is empty; name a folder to write to")
    folder = files.expanded(os.fspath(output))
    if files.exists(folder) and not folder.is_dir():
        raise UsageError(f"{shown(folder)}: is a file; name a folder to write to")
    if files.exists(folder / FILE):
        if not resume and not overwrite:
            raise UsageError(f"{shown(folder)}: holds a training; go on with --resume, or replace it with --overwrite")
    elif not resume and (there := state.written(folder)):
        raise UsageError(
            f"{shown(there[0])}: is there and of no training of glmcpu that could be replaced; name another folder"
        )
    return folder
