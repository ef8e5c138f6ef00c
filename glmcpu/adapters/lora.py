"""LoRA: a thin second path beside a frozen matrix, y = W x + alpha / r * B (A x).

Hu et al. 2021 (arXiv 2106.09685). A (r, I) and B (O, r) are what is trained, r is 8 where I is 4,096: the adapter of a
6B model is some megabytes. The factor is multiplied into B when it is read, so a `LowRank` is all there is to apply.

    base_model.model.transformer.layers.3.attention.query_key_value.lora_A.default.weight     as torch has it in memory
                     transformer.layers.3.attention.query_key_value.lora_A.weight             as it may be saved

peft saves adapter_model.bin or .safetensors and adapter_config.json (lora_config.py). Other trainers save what torch
has in memory and no description; then A tells the rank, and alpha is assumed.

peft up to 0.2 knows a fused matrix, `enable_lora: [true, false, true]`, and takes it for an only target without being
asked. The outputs are cut into contiguous parts, here thirds, of which only the enabled ones are trained, g of them:

    lora_A (g r, I)    lora_B (g O/3, w, 1)     a convolution in g r / w groups (2 in peft, whatever g is): as many
                                                blocks of outputs, of which block k reads rows k w .. of A x
    row of B      0 .. O/3     O/3 .. 2 O/3
    output        0 .. O/3   2 O/3 .. O         for [true, false, true]

ChatGLM's fused matrix holds q, k and v head by head, so these thirds are not "q and v". But they are what was trained,
and are put where they were. The result is an ordinary LowRank, zero where nothing was trained.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from glmcpu import limits
from glmcpu.errors import DataError, printable
from glmcpu.memory import alloc
from glmcpu.models import chatglm
from glmcpu.models.chatglm import Config

from . import lora_config
from .lora_config import Stated
from .opened import Floats, Opened

_PARTS = {
    "attention.query_key_value": "qkv",
    "attention.dense": "attention_out",
    "mlp.dense_h_to_4h": "mlp_up",
    "mlp.dense_4h_to_h": "mlp_down",
}
_NAME = re.compile(
    r"(?:base_model\.model\.)?(transformer\.layers\.(0|[1-9][0-9]{0,3})\.([a-z]+\.[a-z0-9_]+))"
    r"\.lora_([AB])(?:\.([A-Za-z0-9_-]+))?\.weight"
)
_PEFT_02 = (True, False, True)
_MERGE = "merge it with peft (merge_and_unload), save the model and convert that"


@dataclass(frozen=True, eq=False)
class LowRank:
    """What is added to a matrix product: y += up @ (down @ x), with down (r, I) and up (O, r) float32."""

    down: Floats
    up: Floats

    @property
    def rank(self) -> int:
        """r, the width of the path; of a fused matrix, of all parts together."""
        return len(self.down)


@dataclass(frozen=True)
class _Pair:
    """The tensors of one module."""

    module: str  # its official name
    ours: str
    a: str
    b: str


def is_lora(names: Mapping[str, object]) -> bool:
    """Whether tensors of these names are LoRA, of whatever model."""
    return any("lora_" in name for name in names)


def read(adapter: Opened, config: Config, lora_alpha: float | None) -> tuple[dict[str, LowRank], str, list[str]]:
    """Our matrix -> what is added to its product; a phrase and sentences for the user.

    Raises DataError for what is not LoRA on the four matrices of a layer, does not fit the model, or is not what
    adapter_config.json says; MachineError when it cannot be read.
    """
    stated, notes = lora_config.read(adapter.table("adapter_config.json"), adapter.folder, lora_alpha)
    shapes = chatglm.matrices(config)
    found: dict[str, LowRank] = {}
    ranks = set()
    for pair in _pairs(adapter, config):
        O, I = shapes[pair.ours]
        enabled = _fused(adapter, pair, O, stated, notes)
        rank = _rank(adapter, pair, I, stated, sum(enabled) if enabled else 1)
        scale = np.float32(stated.scale(pair.module, rank))
        up = _scattered(adapter, pair, O, enabled) if enabled else _whole(adapter, pair, O)
        with np.errstate(over="ignore"):
            up *= scale
        if not np.isfinite(up).all():
            raise DataError(f"{adapter.told(pair.b)} and overflows when it is scaled by {scale:g}; is alpha right?")
        found[pair.ours] = LowRank(adapter.read(pair.a), up)
        ranks.add(rank)
    low, high = min(ranks), max(ranks)
    rank_text = f"rank {low}" if low == high else f"ranks {low} to {high}"
    return found, f"LoRA: {rank_text} on {len(found)} {'matrix' if len(found) == 1 else 'matrices'}", notes


def _pairs(adapter: Opened, config: Config) -> list[_Pair]:
    """A and B of every module, in our order; raises DataError for any other tensor."""
    found: dict[str, dict[str, str]] = {}
    modules: dict[str, str] = {}
    for name in adapter.tensors:
        match = _NAME.fullmatch(name)
        if match is None or match[3] not in _PARTS:
            raise DataError(_refusal(adapter, name))
        module, layer, part, side, _ = match.groups()
        if int(layer) >= config.layers:
            raise DataError(
                f"{adapter.name}: tensor '{printable(name, 110)}' is of layer {layer}, and this model has "
                f"{config.layers} layers, from 0 on; give it to the model it was trained on"
            )
        ours = f"layers.{layer}.{_PARTS[part]}"
        sides = found.setdefault(ours, {})
        if side in sides:
            raise DataError(
                f"{adapter.name}: '{printable(name, 110)}' and '{printable(sides[side], 110)}' are one and the same; "
                "give a file with one adapter"
            )
        sides[side], modules[ours] = name, module
    for sides in found.values():
        if len(sides) == 1:
            (side, name), other = next(iter(sides.items())), "B" if "A" in sides else "A"
            raise DataError(
                f"{adapter.name}: tensor '{printable(name, 110)}' is there and lora_{other} beside it is not; fetch "
                "the file again"
            )
    order = [ours for ours in chatglm.matrices(config) if ours in found]
    return [_Pair(modules[ours], ours, found[ours]["A"], found[ours]["B"]) for ours in order]


def _refusal(adapter: Opened, name: str) -> str:
    """Why a tensor is not read, and what to do."""
    start = f"{adapter.name}: tensor '{printable(name, 110)}'"
    for mark, what in (
        ("lora_magnitude_vector", "is DoRA's"),
        ("lora_E", "is AdaLoRA's"),
        ("lora_embedding_", "is LoRA on an embedding"),
        ("lm_head.lora_", "is LoRA on the lm_head"),
        ("word_embeddings.lora_", "is LoRA on the embedding"),
    ):
        if mark in name:
            return f"{start} {what}, which is not read; {_MERGE}"
    if "lora_" in name and "transformer.encoder." in name:
        return f"{start} is of ChatGLM2 or ChatGLM3, and this glmcpu runs the first ChatGLM-6B; train it on that"
    if "lora_" in name and not name.endswith(".bias"):
        return f"{start} is LoRA on no matrix of ChatGLM-6B ({', '.join(_PARTS)}); give the model's own adapter"
    what = "a trained bias" if name.endswith(".bias") else "a weight in full"
    return f"{start} is {what} beside LoRA, which is not read; {_MERGE}"


def _fused(adapter: Opened, pair: _Pair, O: int, stated: Stated, notes: list[str]) -> tuple[bool, ...] | None:
    """Which parts of the outputs are trained, where the module is of the fused kind of peft 0.2."""
    enabled, shape = stated.enabled, adapter.shape(pair.b)
    if shape == (O, *adapter.shape(pair.a)[:1]):
        return None  # peft since 0.3 writes this, whatever an older description says
    if enabled is None and len(shape) == 3 and 3 * shape[0] == 2 * O:
        note = "enable_lora [true, false, true] is assumed by the shapes, as peft 0.2 sets it unasked"
        if note not in notes:
            notes.append(note)
        enabled = _PEFT_02
    if enabled is not None and O % len(enabled):
        raise DataError(
            f"{adapter.told(pair.b)}, and enable_lora has {len(enabled)} parts, which do not divide {O:,} outputs; "
            "fetch adapter_config.json again"
        )
    return enabled


def _rank(adapter: Opened, pair: _Pair, I: int, stated: Stated, parts: int) -> int:
    """The rank of a module, after comparing A with the model and with what is stated."""
    shape, rank = adapter.shape(pair.a), stated.rank_of(pair.module)
    told = f"{adapter.told(pair.a)}, and"
    if len(shape) != 2 or shape[1] != I:
        raise DataError(f"{told} this model takes [rank, {I}]; give it to the model it was trained on")
    if not 1 <= shape[0] <= limits.LORA_RANK:
        raise DataError(f"{told} ranks from 1 to {limits.LORA_RANK:,} are accepted; train a smaller one")
    if rank is None and shape[0] % parts == 0:
        return shape[0] // parts
    if rank is None or shape[0] != rank * parts:
        times = f" in each of {parts} parts" if parts > 1 else ""
        which = "no whole rank" if rank is None else f"rank {rank}"
        raise DataError(f"{told} adapter_config.json states {which}{times}; take both files from one folder")
    return rank


def _whole(adapter: Opened, pair: _Pair, O: int) -> Floats:
    """B (O, r) of an ordinary module."""
    shape, r = adapter.shape(pair.b), adapter.shape(pair.a)[0]
    if shape != (O, r):
        raise DataError(
            f"{adapter.told(pair.b)}, and [{O}, {r}] goes with this model and lora_A {list(adapter.shape(pair.a))}; "
            "give it to the model it was trained on"
        )
    return adapter.read(pair.b)


def _scattered(adapter: Opened, pair: _Pair, O: int, enabled: tuple[bool, ...]) -> Floats:
    """B of a fused module as (O, g r): each block of rows where it belongs, zero elsewhere."""
    shape, r = adapter.shape(pair.b), adapter.shape(pair.a)[0]
    rows = np.flatnonzero(np.repeat(enabled, O // len(enabled)))
    fits = len(shape) in (2, 3) and shape[0] == len(rows) and shape[2:] in ((), (1,)) and 1 <= shape[1] <= r
    if not fits or r % shape[1] or len(rows) % (r // shape[1]):
        raise DataError(
            f"{adapter.told(pair.b)}, and [{len(rows)}, {r // sum(enabled)}, 1] goes with enable_lora "
            f"{json.dumps(enabled)}, this model and lora_A {list(adapter.shape(pair.a))}; fetch both files again"
        )
    width = shape[1]
    groups, b = r // width, adapter.read(pair.b).reshape(len(rows), width)
    up = np.asarray(alloc((O, r), np.float32, "an adapter"), np.float32)
    for k in range(groups):
        block = slice(k * len(rows) // groups, (k + 1) * len(rows) // groups)
        up[rows[block], k * width : (k + 1) * width] = b[block]
    return up
