"""Calibration: the model reads a text layer by layer, and each matrix is rounded by what it is given to multiply.

    x = rows of the embedding for all tokens of the text, twice: (2T, C)      exact | rounded
    for each layer, for each matrix in the order of use:
        inputs of the rounded half -> moments, and what its outputs lack of the exact half's
        -> codes and scales (gptq.py) -> kept on disk -> each half is multiplied by its own weights
    the final norm's output where an answer is predicted -> the lm_head

The forward is the model's own, given a backend whose matrix product rounds before it multiplies. The text is read twice
side by side, by the exact matrices and by the rounded ones. So a matrix is rounded for the inputs it will see in use,
and its rows aim at the outputs of the exact model: they take back of what the matrices before have lost as much as they
can (Li et al. 2025, arXiv 2504.02692; 13 % less error behind the last layer of the small model here). One pass: the
moments of one matrix are in memory at a time, the weights a slab of rows at a time, and attention uses one cache.

A tied embedding is rounded last, as the lm_head, and not for that alone: what errors in its rows do as inputs is taken
from the matrices that read the residual. At the beginning its rows are the unrounded ones.

Memory is 8 (T F + 4 T C + F F) bytes, the residuals and the moments of the widest matrix with their factor, and some
slabs: 5 GB for ChatGLM-6B and 8192 tokens. Disk: twice the packed model while it is written.
"""

import hashlib
import os
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from glmcpu import formats, memory, texts
from glmcpu.backends import Floats
from glmcpu.errors import DataError, MachineError, UsageError, shown
from glmcpu.formats import Weight
from glmcpu.memory import megabytes
from glmcpu.models.chatglm import Config
from glmcpu.tokenizers.chatglm import Tokenizer

from . import gptq
from .layer_by_layer import SLAB_BYTES, Advance, Cost, Text, Work
from .origin import Origin
from .work_folder import WorkFolder

LEAST_TOKENS = 128
_SLABS = 6  # that are in memory at once, in different shapes
_OTHER_BYTES = 300 << 20  # Python, NumPy, the kernels, one sequence's cache


def digest(text: Text) -> str:
    """Names the ids and their division."""
    return hashlib.sha256(repr((text.sequences, text.predicted.tolist())).encode()).hexdigest()


def read_text(path: str | os.PathLike[str], tokenizer: Tokenizer, config: Config, wanted: int) -> Text:
    """The first sequences of a file (texts.py) that are at most `wanted` ids together.

    Raises UsageError when the first is longer, DataError for what is no text or fewer than LEAST_TOKENS ids.
    """
    taken: list[list[int]] = []
    predicted: list[NDArray[np.int64]] = []
    total = 0
    for sequence in texts.sequences(path, tokenizer, longest=config.trained_context):
        ids = sequence.ids
        if total + len(ids) > wanted:
            if not taken:
                raise UsageError(
                    f"{sequence.where}: {len(ids):,} tokens, and --calibration-tokens {wanted} has room for fewer; "
                    "raise it"
                )
            break
        taken.append(ids)
        predicted.append(np.arange(total + sequence.begin - 1, total + len(ids) - 1))
        total += len(ids)
    if total < LEAST_TOKENS:
        raise DataError(
            f"{shown(path)}: {total:,} tokens to calibrate with, and at least {LEAST_TOKENS} are needed; "
            "give a longer text, best some thousands"
        )
    return Text(taken, np.concatenate(predicted))


def require_memory(config: Config, tokens: int) -> None:
    """Raises MachineError when a calibration with so many tokens needs more memory than there is."""
    widest = max(config.channels, config.feed_forward)
    needed = 8 * (tokens * (config.feed_forward + 4 * config.channels) + widest**2)
    needed += _SLABS * SLAB_BYTES + _OTHER_BYTES
    have = memory.available_bytes()
    if have is not None and needed > have:
        raise MachineError(
            f"calibration with {tokens:,} tokens needs {megabytes(needed)} of memory and {megabytes(have)} are "
            "available; close other programs or lower --calibration-tokens"
        )


def run(origin: Origin, kinds: Mapping[str, str], text: Text, folder: WorkFolder, advance: Advance) -> None:
    """Rounds every matrix of layer_by_layer.multiplied to its format (matrix -> format) and keeps it in the folder.

    Goes on behind the layers the folder has. advance(stage, work done, work in all), in multiplications. Raises
    DataError for weights that are not finite or too large, MachineError when memory or disk do not suffice.
    """
    _Rounding(origin, kinds, text, folder, advance).forward()


class _Rounding(Work):
    """Rounds a matrix when its inputs are known, keeps it, and multiplies by what it was rounded to."""

    stage = "calibrating"
    times = 2  # exact | rounded

    def __init__(
        self, origin: Origin, kinds: Mapping[str, str], text: Text, folder: WorkFolder, advance: Advance
    ) -> None:
        self._kinds, self._folder = kinds, folder
        super().__init__(origin, text, advance, folder.done)

    def cost(self, name: str) -> Cost:
        source = self.origin.sources[name]
        T = self.text.tokens if name.startswith("layers.") else len(self.text.predicted)
        if not formats.is_grouped(self._kinds[name]):
            return Cost(source.O, 0, 2 * source.I * T)
        sweeps = (3 + 2 * gptq.SWEEPS) * source.I // 2
        return Cost(source.O, source.I * source.I * (T + source.I), source.I * (4 * T + sweeps))

    def after_layer(self, n: int, x: Floats) -> None:
        if n:
            self._folder.finish_layer(self.first + n, x)

    def residual(self) -> Floats:
        return self._folder.residual()

    def linear(self, x: Floats, weight: Weight, out: Floats | None = None) -> Floats:
        self.finish()
        exact, seen = np.split(x, 2)
        in_layer, T = weight.name.startswith("layers."), len(exact)
        # The scores would need half a megabyte a token.
        y = np.empty((len(x), weight.O if in_layer else 0), np.float32)
        form = formats.load(self._kinds[weight.name])
        arrays = {
            key: memory.alloc(shape, dtype, "a rounded matrix")
            for key, (shape, dtype) in form.layout(weight.O, weight.I).items()
        }
        rounded_rows, cost = self._rounder(seen, weight), self.costs[weight.name]
        self.report(weight.name, cost.once)
        begin = 0
        for slab in self.slabs(weight.name):
            here = slice(begin, begin + len(slab))
            wanted = exact @ slab.T
            pieces, rounded = rounded_rows(slab, wanted)
            for key, array in pieces.items():
                arrays[key][begin // 16 : begin // 16 + len(array)] = array
            if in_layer:
                y[:T, here], y[T:, here] = wanted, seen @ rounded.T
            begin += len(slab)
            self.report(weight.name, len(slab) * cost.row)
        self._folder.keep(weight.name, arrays)
        if in_layer:
            y += weight.bias
        return y

    def _rounder(self, x: Floats, weight: Weight) -> Callable[[Floats, Floats], tuple[formats.Arrays, Floats]]:
        """(rows (o, I), outputs (T, o) they aim at) -> the arrays of the format and what they stand for (o, I)."""
        name = self._kinds[weight.name]
        if not formats.is_grouped(name):
            form = formats.load(name)

            def nearest(slab: Floats, wanted: Floats) -> tuple[formats.Arrays, Floats]:
                arrays = form.pack(slab)
                return arrays, formats.decoded(form, arrays, np.arange(len(slab)), weight.I)

            return nearest
        kind = formats.group_format(name)
        also = self._reading() if weight.name == "embedding" else None
        inputs = gptq.prepare(x, kind.GROUP, f"{self.origin.name}: {weight.name}", also)

        def by_inputs(slab: Floats, wanted: Floats) -> tuple[formats.Arrays, Floats]:
            rounded = gptq.round_rows(slab, inputs, kind, (wanted - x @ slab.T).T @ x)
            return kind.store(rounded.codes, rounded.scales), rounded.weight

        return by_inputs

    def _reading(self) -> Floats:
        """How the residual's channels (C, C) are read: the mean of W^T W over the matrices that do, each of power 1."""
        C = self.origin.config.channels
        total = np.zeros((C, C), np.float32)
        for name in self.costs:
            if name.endswith((".qkv", ".mlp_up")):
                square = sum((slab.T @ slab for slab in self.slabs(name)), np.zeros((C, C), np.float32))
                total += square / np.float32(np.trace(square) or 1)
        return total
