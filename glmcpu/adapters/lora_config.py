"""What peft's adapter_config.json says: rank and alpha of each module, and whether this is LoRA as read here.

    r, lora_alpha, use_rslora      y += alpha / r * B A x, or alpha / sqrt(r) * B A x
    rank_pattern, alpha_pattern    {module: value} where a module has its own; the first that fits counts
    enable_lora                    peft 0.2: which parts of a fused matrix are trained (lora.py)

A pattern's key is a module's whole name or the end of one, at a dot. peft takes it for a regular expression; one that
uses more of that than a `^` in front is refused: a stranger wrote it. `fan_in_fan_out` says how the trainer kept the
frozen matrix, to which A and B are the same either way, and `target_modules` which it looked for, which the tensors
show: neither is read. Whatever else changes what is computed is refused by name. Source: huggingface/peft.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from glmcpu import limits
from glmcpu.errors import DataError, printable, shown

ASSUMED_ALPHA = 32
"""What the trainers that save no adapter_config.json use."""

_FILE = "adapter_config.json"
_MERGE = "merge it with peft (merge_and_unload), save the model and convert that"
_HARMLESS = (True, False, "gaussian", "eva", "orthogonal", "mica")
_ELSE = {
    "use_dora": "DoRA, which gives every output a magnitude of its own",
    "use_qalora": "QA-LoRA, which pools the inputs",
    "use_bdlora": "block-diagonal LoRA",
    "kasa_config": "KaSA, which takes part of the base weights away",
    "arrow_config": "Arrow, which chooses among adapters for each token",
    "monteclora_config": "Monte Carlo LoRA",
    "alora_invocation_tokens": "aLoRA, which begins in mid-text",
    "layer_replication": "LoRA on repeated layers",
    "target_parameters": "LoRA on parameters that are no module's weight",
    "trainable_token_indices": "trained rows of the embedding",
    "lora_bias": "LoRA with biases of its own",
}

Value = TypeVar("Value")
_MODULE = re.compile(r"\^?[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")


@dataclass(frozen=True)
class Stated:
    """What is known of the modules; `rank` is None where only the tensors tell it."""

    alpha: float
    rank: int | None = None
    root: bool = False  # alpha / sqrt(r)
    enabled: tuple[bool, ...] | None = None
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)

    def rank_of(self, module: str) -> int | None:
        """The rank of a module, by its name in the official model."""
        return _first(self.ranks, module, self.rank)

    def scale(self, module: str, rank: int) -> float:
        """The factor of B A x."""
        return _first(self.alphas, module, self.alpha) / (rank**0.5 if self.root else rank)


def read(table: Mapping[str, Any] | None, folder: object, lora_alpha: float | None) -> tuple[Stated, list[str]]:
    """What a folder's adapter_config.json states, None where it has none, and sentences for the user.

    lora_alpha, which the user gave, goes before what the file states; a pattern's alphas stay. Raises DataError for
    another kind of adapter, and for values that are none.
    """
    name = shown(f"{folder}/{_FILE}")
    if table is None:
        if lora_alpha is not None:
            return Stated(lora_alpha), []
        note = f"has no {_FILE}, so alpha is assumed to be {ASSUMED_ALPHA}; give --lora-alpha if it was another"
        return Stated(ASSUMED_ALPHA), [note]
    _check_kind(table, name)
    notes = []
    alpha = _number(table["lora_alpha"], "lora_alpha", name) if table.get("lora_alpha") is not None else lora_alpha
    if alpha is None:
        raise DataError(f"{name}: states no lora_alpha, by which the adapter is scaled; give --lora-alpha X")
    if lora_alpha not in (None, alpha):
        notes.append(f"{_FILE} states alpha {alpha:g}, and {lora_alpha:g} is used as you asked")
    root = table.get("use_rslora")
    if root not in (None, True, False):
        raise DataError(f"{name}: use_rslora is {printable(root, 40)!r}; expected true or false, fetch it again")
    rank = table.get("r")
    stated = Stated(
        alpha=float(alpha if lora_alpha is None else lora_alpha),
        rank=None if rank is None else _rank(rank, "r", name),
        root=bool(root),
        enabled=_enabled(table.get("enable_lora"), name),
        ranks={key: _rank(value, "rank_pattern", name) for key, value in _pattern(table, "rank_pattern", name)},
        alphas={key: _number(value, "alpha_pattern", name) for key, value in _pattern(table, "alpha_pattern", name)},
    )
    return stated, notes


def _check_kind(table: Mapping[str, Any], name: str) -> None:
    """Raises DataError for anything that is more than B A x beside a frozen matrix."""
    kind = table.get("peft_type", "LORA")
    if kind != "LORA":
        raise DataError(
            f"{name}: peft_type is {printable(kind, 40)}; LoRA and the official P-Tuning v2 are read, train one of them"
        )
    for key, what in _ELSE.items():
        if table.get(key):
            raise DataError(f"{name}: {key} is set: {what}, is not read; {_MERGE}")
    if saved := table.get("modules_to_save"):
        raise DataError(f"{name}: modules_to_save is {printable(saved, 60)}: whole modules were trained; {_MERGE}")
    bias = table.get("bias")
    if bias not in (None, "none"):
        raise DataError(f"{name}: bias is {printable(bias, 40)!r}: biases were trained too and are not read; {_MERGE}")
    begin = table.get("init_lora_weights")
    if begin is not None and begin not in _HARMLESS:
        raise DataError(
            f"{name}: init_lora_weights is {printable(begin, 40)!r}, which changes the base weights and so fits none "
            "but those; save it with peft's path_initial_model_for_weight_conversion, or merge it there"
        )


def _first(pattern: Mapping[str, Value], module: str, other: Value) -> Value:
    """The value of the first key that is the module or, without ^, an end of its name."""
    for key, value in pattern.items():
        if module == key.removeprefix("^") or module.endswith(f".{key}"):
            return value
    return other


def _pattern(table: Mapping[str, Any], key: str, name: str) -> list[tuple[str, Any]]:
    pattern = table.get(key) or {}
    if not isinstance(pattern, dict):
        raise DataError(f"{name}: {key} is {printable(pattern, 40)!r}; expected an object, fetch the file again")
    for module in pattern:
        if not _MODULE.fullmatch(module):
            raise DataError(
                f"{name}: {key} has {printable(module, 60)!r}, a regular expression, and those are not run; write a "
                "line for each module's name there"
            )
    return list(pattern.items())


def _rank(value: Any, key: str, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limits.LORA_RANK:
        raise DataError(
            f"{name}: {key} has the rank {printable(value, 40)}; expected 1 to {limits.LORA_RANK:,}, fetch it again"
        )
    return value


def _number(value: Any, key: str, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= limits.LORA_ALPHA:
        raise DataError(
            f"{name}: {key} has the alpha {printable(value, 40)}; expected a number above 0 and up to "
            f"{limits.LORA_ALPHA:,}, fetch it again"
        )
    return float(value)


def _enabled(value: Any, name: str) -> tuple[bool, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(part, bool) for part in value) or not any(value):
        raise DataError(
            f"{name}: enable_lora is {printable(value, 60)}; expected a list of true and false with one true at least"
        )
    return tuple(value)
