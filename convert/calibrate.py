"""Calibration: the model reads a text layer by layer, and each matrix is rounded by what it is given to multiply.

    x = rows of the embedding for all tokens of the text, (T, C)
    for each layer, for each matrix in the order of use:
        inputs -> moments -> codes and scales (gptq.py) -> kept on disk -> outputs of the *rounded* matrix go on
    the final norm's output where an answer is predicted -> the lm_head

The forward is the model's own, given a backend whose matrix product rounds before it multiplies. So later matrices see
the inputs they will see in use, and make up for what the earlier ones have lost. One pass: the moments of one matrix
are in memory at a time, the weights a slab of rows at a time, and attention uses one cache for all layers.

Memory is 4 (T F + 4 T C + 3 F F) bytes, the residuals and the moments of the widest matrix with their factor, and some
slabs: 4.7 GB for ChatGLM-6B and 8192 tokens. Disk: twice the packed model while it is written. A tied embedding is
rounded last, as the lm_head; at the beginning its rows are the unrounded ones.
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
    needed = 4 * (tokens * (config.feed_forward + 4 * config.channels) + 3 * widest**2)
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

    def __init__(
        self, origin: Origin, kinds: Mapping[str, str], text: Text, folder: WorkFolder, advance: Advance
    ) -> None:
        self._kinds, self._folder = kinds, folder
        super().__init__(origin, text, advance, folder.done)

    def cost(self, name: str) -> Cost:
        source = self.origin.sources[name]
        T = self.text.tokens if name.startswith("layers.") else len(self.text.predicted)
        if not formats.is_grouped(self._kinds[name]):
            return Cost(source.O, 0, source.I * T)
        sweeps = (1 + 2 * gptq.SWEEPS) * source.I // 2
        return Cost(source.O, source.I * source.I * (T + source.I), source.I * (T + sweeps))

    def after_layer(self, n: int, x: Floats) -> None:
        if n:
            self._folder.finish_layer(self.first + n, x)

    def residual(self) -> Floats:
        return self._folder.residual()

    def linear(self, x: Floats, weight: Weight, out: Floats | None = None) -> Floats:
        self.finish()
        in_layer = weight.name.startswith("layers.")
        # The scores would need half a megabyte a token.
        y = np.empty((len(x), weight.O if in_layer else 0), np.float32)
        form = formats.load(self._kinds[weight.name])
        arrays = {
            key: memory.alloc(shape, dtype, "a rounded matrix")
            for key, (shape, dtype) in form.layout(weight.O, weight.I).items()
        }
        rounded_rows, cost = self._rounder(x, weight), self.costs[weight.name]
        self.report(weight.name, cost.once)
        begin = 0
        for slab in self.slabs(weight.name):
            pieces, rounded = rounded_rows(slab)
            for key, array in pieces.items():
                arrays[key][begin // 16 : begin // 16 + len(array)] = array
            if in_layer:
                y[:, begin : begin + len(slab)] = x @ rounded.T
            begin += len(slab)
            self.report(weight.name, len(slab) * cost.row)
        self._folder.keep(weight.name, arrays)
        if in_layer:
            y += weight.bias
        return y

    def _rounder(self, x: Floats, weight: Weight) -> Callable[[Floats], tuple[formats.Arrays, Floats]]:
        """Rows (o, I) -> the arrays of the format and what they stand for (o, I): by the inputs, or to the nearest."""
        name = self._kinds[weight.name]
        if not formats.is_grouped(name):
            form = formats.load(name)

            def nearest(slab: Floats) -> tuple[formats.Arrays, Floats]:
                arrays = form.pack(slab)
                return arrays, form.rows(arrays, np.arange(len(slab)), weight.I)

            return nearest
        kind = formats.group_format(name)
        inputs = gptq.prepare(x, kind.GROUP, f"{self.origin.name}: {weight.name}")

        def by_inputs(slab: Floats) -> tuple[formats.Arrays, Floats]:
            rounded = gptq.round_rows(slab, inputs, kind)
            return kind.store(rounded.codes, rounded.scales), rounded.weight

        return by_inputs
