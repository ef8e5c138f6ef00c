"""Adapters: what was trained beside a model that stayed as it is.

    adapter = adapters.read("adgen-checkpoint-3000", config)
    adapter.prefix      P-Tuning v2: keys and values in front of every prompt (ptuning.py)
    adapter.low_rank    LoRA: what is added to the product of each matrix (lora.py)

Which of the two it is, the tensors in the files say. Reading takes no torch and runs nothing that is in a file.
"""

import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from glmcpu import limits
from glmcpu.errors import DataError, UsageError, printable, shown
from glmcpu.models.chatglm import Config

from . import lora, lora_config, ptuning
from .lora import LowRank
from .opened import Opened, opened
from .ptuning import Prefix

__all__ = ["Adapter", "LowRank", "Prefix", "read", "read_mergeable"]


@dataclass(frozen=True, eq=False)
class Adapter:
    """A prefix, or low-rank paths by our matrix name ("layers.0.qkv"); the other of the two is empty."""

    path: Path
    prefix: Prefix | None
    low_rank: Mapping[str, LowRank]
    about: str  # for the user: "prefix: 128 tokens", "LoRA: rank 8 on 28 matrices"
    notes: tuple[str, ...]  # sentences for the user: what was assumed, or found and not used
    files: tuple[Path, ...]  # every file that was read

    @property
    def prefix_tokens(self) -> int:
        """The places it takes in every cache."""
        return self.prefix.tokens if self.prefix else 0

    def digest(self) -> str:
        """SHA-256 of its numbers: equal for adapters that do the same."""
        state = hashlib.sha256()
        arrays = {} if self.prefix is None else {"keys": self.prefix.keys, "values": self.prefix.values}
        for name, pair in sorted(self.low_rank.items()):
            arrays |= {f"{name}.down": pair.down, f"{name}.up": pair.up}
        for name, array in arrays.items():
            state.update(f"{name} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        return state.hexdigest()


def read(path: str | os.PathLike[str], config: Config, *, lora_alpha: float | None = None) -> Adapter:
    """The adapter in a folder or file, for a model of this config.

    lora_alpha is for LoRA that was saved without adapter_config.json, or goes before what that states. Raises DataError
    for what is no adapter, does not fit the model or is damaged, UsageError for a lora_alpha that is out of range or of
    no use, MachineError when the system refuses to read.
    """
    return _read(path, config, lora_alpha, mergeable=False)


def read_mergeable(path: str | os.PathLike[str], config: Config, *, lora_alpha: float | None = None) -> Adapter:
    """As `read`, for LoRA; raises UsageError for a prefix, which is no change of a weight."""
    return _read(path, config, lora_alpha, mergeable=True)


def _read(path: str | os.PathLike[str], config: Config, lora_alpha: float | None, mergeable: bool) -> Adapter:
    _check_alpha(lora_alpha)
    with opened(path) as adapter:
        prefix: Prefix | None = None
        low_rank: dict[str, LowRank] = {}
        notes: list[str] = []
        is_prefix = any(name.startswith(ptuning.PREFIX) for name in adapter.tensors)
        if is_prefix and lora.is_lora(adapter.tensors):
            raise DataError(f"{adapter.name}: holds a prefix and LoRA; save each to a folder of its own")
        if is_prefix and mergeable:
            raise UsageError(
                f"{adapter.name}: is a P-Tuning prefix, which no weight can take up; convert without --adapter, and "
                "then: glmcpu chat MODEL --adapter PATH"
            )
        if is_prefix and lora_alpha is not None:
            raise UsageError(f"--lora-alpha {lora_alpha:g} is for LoRA, and {adapter.name} is a prefix; leave it out")
        if is_prefix:
            prefix = ptuning.read(adapter, config)
            about = f"prefix: {prefix.tokens:,} {'token' if prefix.tokens == 1 else 'tokens'}"
        elif lora.is_lora(adapter.tensors):
            low_rank, about, notes = lora.read(adapter, config, lora_alpha)
        else:
            raise DataError(_neither(adapter))
        return Adapter(Path(path), prefix, low_rank, about, (*adapter.notes, *notes), tuple(sorted(adapter.files)))


def _check_alpha(lora_alpha: float | None) -> None:
    if lora_alpha is None:
        return
    number = isinstance(lora_alpha, (int, float)) and not isinstance(lora_alpha, bool)
    if not number or not math.isfinite(lora_alpha) or not 0 < lora_alpha <= limits.LORA_ALPHA:
        raise UsageError(
            f"--lora-alpha {printable(lora_alpha, 40)}: a number above 0 and up to {limits.LORA_ALPHA:,} is needed"
        )


def _neither(adapter: Opened) -> str:
    """What a file without prefix and LoRA holds instead, and what to do with it; raises DataError of other adapters."""
    if (table := adapter.table("adapter_config.json")) is not None:
        lora_config.read(table, adapter.folder, 1.0)
    names = list(adapter.tensors)
    first = ", ".join(f"'{printable(name, 50)}'" for name in names[:2])
    if "transformer.word_embeddings.weight" in names:
        return (
            f"{adapter.name}: a whole model of {len(names):,} tensors, no adapter; convert it: "
            f"glmcpu convert {shown(adapter.folder)}"
        )
    if any(name.startswith("transformer.") for name in names):
        return (
            f"{adapter.name}: {len(names):,} weights in full ({first}) and no adapter; put them into the model with "
            "its trainer, save it whole and convert that"
        )
    return (
        f"{adapter.name}: holds {first} and no tensor of a prefix (transformer.prefix_encoder.) or of LoRA (lora_A, "
        "lora_B); is it an adapter of ChatGLM-6B?"
    )
