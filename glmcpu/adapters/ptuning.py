"""P-Tuning v2: the model stays as it is, and is told of a past that never was.

In front of every prompt stand P invented tokens. They have no words; what is trained is what attention would keep of
them, a key and a value for each layer and head (Liu et al. 2021, arXiv 2110.07602). So a tuned ChatGLM-6B is 14,336
numbers a token beside weights that did not change: 128 tokens are 117 MB in float32.

    transformer.prefix_encoder.embedding.weight  (P, 2 L C)
        row p:  | layer 0 keys | layer 0 values | layer 1 keys | ... |     C = H D numbers each, head by head

Some are trained through a projection, which is of no use afterwards:

    embedding.weight (P, E) -> trans.0 (M, E) -> tanh -> trans.2 (2 L C, M)      then rows as above

That of ChatGLM-6B takes 3.8 GB (trans.2.weight is 229,376 x 4,096). It is folded one layer's keys or values at a time,
64 MB, and only the prefix stays. Everything else in the file is left out: early trainers saved the frozen weights too.

The official model never turns the keys of a prefix (they have no positions), shows it to every token, and counts the
positions of the text as if it were not there. Dropout on the prefix is for training.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from glmcpu import limits
from glmcpu.errors import DataError, printable
from glmcpu.memory import alloc
from glmcpu.models.chatglm import Config

from .opened import Floats, Opened

PREFIX = "transformer.prefix_encoder."

_EMBEDDING = f"{PREFIX}embedding.weight"
_PROJECTION = tuple(f"{PREFIX}trans.{part}" for part in ("0.weight", "0.bias", "2.weight", "2.bias"))
_OFFICIAL = (28, 4096)  # layers and channels of ChatGLM-6B
_SLAB_BYTES = 32 << 20


@dataclass(frozen=True, eq=False)
class Prefix:
    """Keys and values (L, P, H, D) float32 that stand in every layer's cache in front of the prompt, as they are."""

    keys: Floats
    values: Floats

    @property
    def tokens(self) -> int:
        """P, the places it takes in a cache."""
        return int(self.keys.shape[1])


def read(adapter: Opened, config: Config) -> Prefix:
    """The prefix of an open official checkpoint, for a model of this config.

    Raises DataError when it does not fit the model, parts of it are missing or unknown, or the config.json beside it
    says otherwise; MachineError when it cannot be read or there is no memory for it.
    """
    projected = _check_names(adapter)
    P, table = adapter.shape(_EMBEDDING)[0], adapter.table("config.json") or {}
    _check_table(adapter, table, P, projected)
    if not 1 <= P <= limits.PREFIX_TOKENS:
        raise DataError(
            f"{adapter.told(_EMBEDDING)}, a prefix of {P:,} tokens, and at most {limits.PREFIX_TOKENS:,} are accepted; "
            "train a shorter one"
        )
    _check_shapes(adapter, config, table, projected)
    shape = config.layers, P, config.heads, config.channels // config.heads
    keys, values = (np.asarray(alloc(shape, np.float32, "the prefix"), np.float32) for _ in range(2))
    (_project if projected else _take)(adapter, keys, values)
    if not (np.isfinite(keys).all() and np.isfinite(values).all()):
        raise DataError(f"{adapter.name}: its projection gives NaN or infinity; the training failed, take another step")
    return Prefix(keys, values)


def _take(adapter: Opened, keys: Floats, values: Floats) -> None:
    """Fills keys and values (L, P, H, D) from a prefix that is stored as it is."""
    L, _, H, D = keys.shape
    begin = 0
    for slab in adapter.slabs(_EMBEDDING, max(1, _SLAB_BYTES // (8 * L * H * D))):
        rows = slab.reshape(len(slab), 2 * L, H, D).swapaxes(0, 1)
        keys[:, begin : begin + len(slab)], values[:, begin : begin + len(slab)] = rows[0::2], rows[1::2]
        begin += len(slab)


def _project(adapter: Opened, keys: Floats, values: Floats) -> None:
    """Fills keys and values (L, P, H, D) with what the projection makes of the stored rows."""
    L, P, H, D = keys.shape
    first, first_bias, second, second_bias = _PROJECTION
    with np.errstate(over="ignore", invalid="ignore"):  # the result is looked at
        h = np.tanh(adapter.read(_EMBEDDING) @ adapter.read(first).T + adapter.read(first_bias))  # (P, M)
        bias = adapter.read(second_bias).reshape(2 * L, H * D)
        for n, slab in enumerate(adapter.slabs(second, H * D)):  # layer 0 keys, layer 0 values, layer 1 keys ..
            (values if n % 2 else keys)[n // 2] = (h @ slab.T + bias[n]).reshape(P, H, D)


def _check_names(adapter: Opened) -> bool:
    """Whether there is a projection; raises DataError for parts that are missing, unknown or of no such kind."""
    found = [name for name in adapter.tensors if name.startswith(PREFIX)]
    if extra := [name for name in found if name not in (_EMBEDDING, *_PROJECTION)]:
        raise DataError(
            f"{adapter.name}: tensor '{printable(extra[0], 90)}' is not part of an official prefix encoder "
            "(embedding, trans.0, trans.2); is it of another model?"
        )
    projected = any(name in found for name in _PROJECTION)
    needed = (_EMBEDDING, *_PROJECTION) if projected else (_EMBEDDING,)
    if absent := [name for name in needed if name not in found]:
        raise DataError(
            f"{adapter.name}: tensor '{absent[0]}' is missing beside '{printable(found[0], 90)}'; fetch all files of "
            "the checkpoint again"
        )
    for name in needed:
        kind = "a vector" if name.endswith("bias") else "a matrix"
        if len(adapter.shape(name)) != (1 if name.endswith("bias") else 2):
            raise DataError(f"{adapter.told(name)}, and {kind} is needed; let the trainer save it again")
    return projected


def _check_table(adapter: Opened, table: Mapping[str, Any], P: int, projected: bool) -> None:
    """Compares with the config.json beside the weights; a key it does not have says nothing."""
    tokens = table.get("pre_seq_len")
    if tokens is not None and (tokens != P or isinstance(tokens, bool)):
        raise DataError(
            f"{adapter.told(_EMBEDDING)}, and config.json beside it states pre_seq_len {printable(repr(tokens), 20)}: "
            "files of two trainings are mixed; take both from one folder"
        )
    stated = table.get("prefix_projection")
    if stated is not None and stated is not projected:
        raise DataError(
            f"{adapter.name}: holds {'a' if projected else 'no'} projection (trans.0, trans.2), and config.json beside "
            f"it states prefix_projection {printable(stated, 20)}: files of two trainings are mixed; take both from "
            "one folder"
        )


def _check_shapes(adapter: Opened, config: Config, table: Mapping[str, Any], projected: bool) -> None:
    """Raises DataError unless the tensors fit the model and each other."""
    L, C = config.layers, config.channels
    last = _PROJECTION[2] if projected else _EMBEDDING
    shape = adapter.shape(last)
    width = shape[0] if projected else shape[-1]
    if width != 2 * L * C:
        raise DataError(
            f"{adapter.told(last)}, a prefix for {_trained_for(width, table)}, and this model has 2 x {L} x {C:,} = "
            f"{2 * L * C:,} keys and values a token; give it to the model it was trained on"
        )
    if not projected:
        return
    E, M = adapter.shape(_EMBEDDING)[1], shape[-1]
    for name, expected in zip(_PROJECTION, ((M, E), (M,), (width, M), (width,)), strict=True):
        if adapter.shape(name) != expected:
            raise DataError(
                f"{adapter.told(name)}, and beside the other parts {list(expected)} is needed; fetch all files of the "
                "checkpoint again"
            )
    if not (1 <= E <= limits.CHANNELS and 1 <= M <= limits.CHANNELS):
        raise DataError(
            f"{adapter.told(_PROJECTION[0])}, and at most {limits.CHANNELS:,} channels are accepted; is it a prefix?"
        )


def _trained_for(width: int, table: Mapping[str, Any]) -> str:
    """The model a prefix of that width is for, in words."""
    for layers, channels in ((table.get("num_layers"), table.get("hidden_size")), _OFFICIAL):
        if isinstance(layers, int) and isinstance(channels, int) and 2 * layers * channels == width:
            return f"{layers} layers of {channels:,} channels"
    return f"{width:,} keys and values a token"
