"""ChatGLM-6B, the first generation (THUDM 2023): what it computes from ids to scores.

    x = embedding[ids]
    28 times:   h = norm(x);  x = alpha h + attention(h)          the residual is the *normed* input, times alpha
                h = norm(x);  x = alpha h + mlp(h)                mlp: up, GELU, down; no gate
    scores = lm_head(norm(x))

A prompt is `text [gMASK] <sop>`: everything before <sop> (the context) sees all of itself, <sop> and the answer see
what came before. Positions are pairs: (0, 0) (1, 0) .. for the context, then (m, 1) (m, 2) .. with m the place of the
mask token. Each head turns its first half by the one number and its second half by the other.

Source: modeling_chatglm.py of THUDM/chatglm-6b. This file knows no backend and no file; it is given both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from glmcpu import limits
from glmcpu.backends import Backend, Batch, Floats
from glmcpu.cache import KVCache, Segment, bytes_for
from glmcpu.errors import DataError
from glmcpu.formats import Weight
from glmcpu.models import Observer, Part, Store

# sqrt(2 * layers) with the official 28 in every size: the model class does not pass its layer count on to the blocks.
ALPHA = 7.483314773547883

_FEW = 16  # tokens of a forward that is worth writing down: the steps of an answer, not a prompt


@dataclass(frozen=True)
class Config:
    """The hyperparameters; `read` in convert/ makes one of an official config.json."""

    vocabulary: int
    channels: int
    layers: int
    heads: int
    feed_forward: int
    epsilon: float
    trained_context: int
    rotary_parts: int  # 2: two-dimensional positions; 1: one-dimensional
    bos: int  # <sop>
    eos: int  # <eop>
    mask: int
    gmask: int
    pad: int
    image_tokens: int  # ids before the text's: 20000 in the vocabulary of the first weeks, else 0
    tied: bool  # the embedding is the lm_head too


def check(config: Config, name: str, keys: Mapping[str, str] | None = None) -> None:
    """Raises DataError, beginning with `name`, when a hyperparameter is out of range or two do not fit together.

    keys: field -> what the file that `name` is calls it
    """
    for field, low, high in (
        ("vocabulary", 1, limits.VOCABULARY),
        ("channels", 1, limits.CHANNELS),
        ("layers", 1, limits.LAYERS),
        ("heads", 1, limits.HEADS),
        ("feed_forward", 1, limits.FEED_FORWARD),
        ("trained_context", 1, limits.CONTEXT),
        ("epsilon", 0, 1),
        ("rotary_parts", 1, 2),
        ("image_tokens", 0, config.vocabulary),
        *((special, 0, config.vocabulary - 1) for special in ("bos", "eos", "mask", "gmask", "pad")),
    ):
        value = getattr(config, field)
        if not low <= value <= high:
            known = (keys or {}).get(field, field)
            raise DataError(
                f"{name}: {known} is {value:,}, and must lie between {low:,} and {high:,}; the config is damaged"
            )
    if config.channels % config.heads:
        raise DataError(f"{name}: {config.heads} heads do not divide {config.channels} channels; the config is damaged")
    if (config.channels // config.heads) % (2 * config.rotary_parts):
        raise DataError(
            f"{name}: {config.channels // config.heads} channels a head, and a multiple of {2 * config.rotary_parts} "
            "is needed for rotary positions; the config is damaged"
        )


def matrices(config: Config) -> dict[str, tuple[int, int]]:
    """Name -> (outputs, inputs) of every weight that has a format, in the order of use."""
    C, F, V = config.channels, config.feed_forward, config.vocabulary
    shapes = {"embedding": (V, C)}
    for n in range(config.layers):
        shapes |= {
            f"layers.{n}.qkv": (3 * C, C),
            f"layers.{n}.attention_out": (C, C),
            f"layers.{n}.mlp_up": (F, C),
            f"layers.{n}.mlp_down": (C, F),
        }
    return shapes if config.tied else shapes | {"lm_head": (V, C)}


def vectors(config: Config) -> dict[str, int]:
    """Name -> length of every bias and norm; these are float32 in every format."""
    lengths = {f"{name}.bias": O for name, (O, _) in matrices(config).items() if name.startswith("layers.")}
    norms = [f"layers.{n}.{name}" for n in range(config.layers) for name in ("attention_norm", "mlp_norm")]
    for norm in [*norms, "final_norm"]:
        lengths |= {f"{norm}.scale": config.channels, f"{norm}.shift": config.channels}
    return lengths


def cache_bytes(config: Config, context: int, kind: str) -> int:
    """Memory of a full cache of that kind."""
    return bytes_for(config.layers, config.heads, config.channels // config.heads, context, kind)


@dataclass(frozen=True)
class _Norm:
    scale: Floats
    shift: Floats


@dataclass(frozen=True)
class _Layer:
    attention_norm: _Norm
    qkv: Weight
    attention_out: Weight
    mlp_norm: _Norm
    mlp_up: Weight
    mlp_down: Weight


def build(config: Config, store: Store, backend: Backend) -> "ChatGLM":
    """The model of a checked config; raises DataError when the store lacks a weight."""
    return ChatGLM(config, store, backend)


class ChatGLM:
    """The model: read-only weights and a backend that does the arithmetic."""

    def __init__(self, config: Config, store: Store, backend: Backend) -> None:
        self.config = config
        self._backend = backend
        self._formats = store.formats
        shapes, C = matrices(config), config.channels

        def weight(name: str) -> Weight:
            return backend.keep(store.weight(name, *shapes[name]))

        def norm(name: str) -> _Norm:
            return _Norm(*(backend.keep_vector(store.vector(f"{name}.{part}", C)) for part in ("scale", "shift")))

        def layer(name: str) -> _Layer:
            return _Layer(
                attention_norm=norm(f"{name}.attention_norm"),
                qkv=weight(f"{name}.qkv"),
                attention_out=weight(f"{name}.attention_out"),
                mlp_norm=norm(f"{name}.mlp_norm"),
                mlp_up=weight(f"{name}.mlp_up"),
                mlp_down=weight(f"{name}.mlp_down"),
            )

        self._embedding = weight("embedding")
        self._lm_head = self._embedding if config.tied else weight("lm_head")
        self._final_norm = norm("final_norm")
        self._layers = [layer(f"layers.{n}") for n in range(config.layers)]

    def new_cache(self, capacity: int) -> KVCache:
        """An empty cache for `capacity` tokens; raises MachineError when there is no memory for it."""
        c = self.config
        return self._backend.new_cache(c.layers, c.heads, c.channels // c.heads, capacity, self._formats)

    def is_compiled(self) -> bool:
        """Whether the backend's code for these formats is ready on this machine."""
        return self._backend.is_compiled(self._formats)

    def forward(
        self,
        parts: Sequence[Part],
        every: bool = False,
        after_layer: Observer | None = None,
        wanted: NDArray[np.int64] | None = None,
    ) -> Floats:
        """Reads the ids that each part's cache does not hold yet, all sequences in one pass over the weights.

        Returns the scores after the last id of each part (parts, V), with `every` after each id read (T, V), or after
        the `wanted` ones (n, V), numbered over all parts.
        after_layer(n, x) is called with the residual x (T, C) before layer n and once after the last: a progress
        report, and a window for tests. A sequence's result does not depend on the others. Raises DataError for ids
        outside the vocabulary or without <sop> and a mask token, and when a cache is too small or nothing is new.
        """
        ids, positions, segments = self._lay_out(parts)
        with self._backend.exclusive():
            batch = Batch(*rotary_tables(positions, self.config.channels // self.config.heads), segments)
            x = self._backend.rows(self._embedding, ids)
            if len(ids) <= _FEW and after_layer is None and wanted is None and (every or len(ids) == len(parts)):
                scores = self._backend.repeat(x, batch, lambda x, batch: self._scores(self._blocks([x], batch)))
            else:
                residual = [x]
                del x
                x = self._blocks(residual, batch, after_layer)
                self._backend.finish()
                if after_layer:
                    after_layer(len(self._layers), x)
                if wanted is None and not every:
                    wanted = np.array([segment.end - 1 for segment in segments])
                if wanted is not None:
                    x = self._backend.take(x, wanted)
                scores = self._finished_scores(x)
        for segment in segments:
            segment.cache.length += segment.end - segment.begin
        return scores

    def scores(self, x: Floats) -> Floats:
        """The scores (t, V) of residuals x (t, C) that `forward` has shown after the last layer, some at a time."""
        with self._backend.exclusive():
            return self._finished_scores(x)

    def _blocks(self, residual: list[Floats], batch: Batch, after_layer: Observer | None = None) -> Floats:
        """The residual (T, C) after all layers.

        It is taken out of the list, and nobody holds on to what has been read: with a long prompt each is 30 MB.
        """
        for n in range(len(self._layers)):
            if after_layer:
                self._backend.finish()
                after_layer(n, residual[0])
            residual.append(self._backend.block(residual, partial(self._block, n, batch)))
        return residual.pop()

    def _block(self, n: int, batch: Batch, residual: list[Floats]) -> Floats:
        x, w, epsilon = residual.pop(), self._layers[n], self.config.epsilon
        h = self._backend.layer_norm(x, w.attention_norm.scale, w.attention_norm.shift, epsilon)
        del x
        x = self._backend.scale_add(h, ALPHA, self._attention(h, n, w, batch))
        h = self._backend.layer_norm(x, w.mlp_norm.scale, w.mlp_norm.shift, epsilon)
        del x
        return self._backend.scale_add(h, ALPHA, self._mlp(h, w))

    def _finished_scores(self, x: Floats) -> Floats:
        scores = self._scores(x)
        self._backend.finish()
        return self._backend.numbers(scores)

    def _scores(self, x: Floats) -> Floats:
        x = self._backend.layer_norm(x, self._final_norm.scale, self._final_norm.shift, self.config.epsilon)
        return self._backend.linear(x, self._lm_head)

    def _attention(self, h: Floats, n: int, w: _Layer, batch: Batch) -> Floats:
        qkv = self._backend.linear(h, w.qkv)  # (T, H*3*D)
        attended = self._backend.attend(qkv, n, batch, self.config.heads, self.config.rotary_parts)
        return self._backend.linear(attended, w.attention_out)

    def _mlp(self, h: Floats, w: _Layer) -> Floats:
        def up_and_down(h: Floats, out: Floats | None) -> Floats:
            return self._backend.linear(self._backend.gelu(self._backend.linear(h, w.mlp_up)), w.mlp_down, out)

        return self._backend.in_slabs(h, w.mlp_down.O, up_and_down)

    def _lay_out(self, parts: Sequence[Part]) -> tuple[NDArray[np.int64], NDArray[np.int64], list[Segment]]:
        """The parts' new tokens end to end: ids (T,), positions (T, parts of the rotary), one segment for each."""
        ids: list[int] = []
        positions, segments = [], []
        for part in parts:
            begin = part.cache.length
            where, visible = plan(part.ids, begin, self.config)
            self._check(part)
            first, cache = len(ids), part.cache
            places = np.arange(begin, len(part.ids)) + cache.prefix
            segments.append(Segment(first, first + len(visible), places, visible + cache.prefix, cache))
            ids.extend(part.ids[begin:])
            positions.append(where)
        return np.array(ids, np.int64), np.concatenate(positions), segments

    def _check(self, part: Part) -> None:
        ids, cache = part
        # A kernel writes where it is told to: ids behind the cache's end would damage memory.
        if not cache.length < len(ids) <= cache.capacity:
            raise DataError(
                f"{len(ids):,} ids for a cache that holds {cache.length:,} of them and has room for {cache.capacity:,} "
                "in all; give at least one new id and no more than fit"
            )
        for i in ids[cache.length :]:
            if not 0 <= i < self.config.vocabulary:
                raise DataError(f"id {i} is outside the vocabulary of {self.config.vocabulary:,}")


def plan(ids: Sequence[int], begin: int, config: Config) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions (t, rotary_parts) of ids[begin:], and how many positions each of them attends to (t,).

    begin 0 is a prompt read at once, later ids are read one by one as the official generate() does it: with
    one-dimensional positions the two differ. Raises DataError when ids lack <sop>, or [gMASK] and [MASK].
    """
    context, place = _landmarks(ids, config)
    index = np.arange(begin, len(ids))
    if config.rotary_parts == 2:
        positions = np.stack([np.where(index < context, index, place), np.maximum(0, index - context + 1)], axis=1)
    elif begin > 0:
        positions = np.full((len(index), 1), place)
    else:
        counted = index if config.gmask in ids else np.where(index < context, index, place)
        positions = counted[:, None]
    visible = np.maximum(context if begin == 0 else 0, index + 1)
    return positions.astype(np.int64), visible.astype(np.int64)


def _landmarks(ids: Sequence[int], config: Config) -> tuple[int, int]:
    """Where <sop> and the mask token first stand; [gMASK] comes before [MASK] wherever it is."""
    if not ids:
        raise DataError("no ids to read; a prompt is text, [gMASK] and <sop>")
    if config.bos not in ids:
        raise DataError(f"these {len(ids)} ids lack <sop> ({config.bos}); end the prompt with [gMASK] <sop>")
    mask = config.gmask if config.gmask in ids else config.mask
    if mask not in ids:
        raise DataError(
            f"these {len(ids)} ids lack [gMASK] ({config.gmask}) and [MASK] ({config.mask}); "
            "end the prompt with [gMASK] <sop>"
        )
    return ids.index(config.bos), ids.index(mask)


def rotary_tables(positions: NDArray[np.int64], D: int) -> tuple[Floats, Floats]:
    """cos and sin (T, D/2) of the angles for positions (T, parts): the first part's D/(2 parts) pairs, then the next's.

    The frequencies 10000^(-2i/d) are rounded to half precision, as in the official model.
    """
    parts = positions.shape[1]
    d = D // parts
    exponents = np.arange(0, d, 2, dtype=np.float32) / np.float32(d)
    frequencies = (np.float32(1) / np.float32(10000) ** exponents).astype(np.float16).astype(np.float32)
    angles = positions.astype(np.float32)[:, :, None] * frequencies  # (T, parts, d/2)
    flat = np.ascontiguousarray(angles.reshape(len(positions), -1))
    return np.cos(flat), np.sin(flat)
