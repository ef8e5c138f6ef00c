"""How well does a model predict answers, and how far is it from another model?

ChatGLM-6B is a prefix language model: a context that sees all of itself, then an answer, id by id. So the protocol:

    text of texts.py    what is context                             what is scored
    an example          the chat prompt, [gMASK] <sop>              every id of the response, and <eop>
    a window of text    its first half, [gMASK] <sop>               every id of its second half

An id is scored by its probability p after the true ids before it (teacher forcing), all of a sequence in one pass;
ids of a context never are. Of one model, with a reference beside it:

    perplexity          exp(mean of -ln p over all scored ids)
    KL divergence       sum over the vocabulary of p_ref ln(p_ref / p), at each scored id, in nats
    top-1 agreement     how often both models find the same id likeliest
    change              the largest |p - p_ref| in the vocabulary, at each scored id

Ids of one sequence are not independent, so standard errors are those of a mean over sequences: with S the sum of a
sequence and n its ids, sqrt(k / (k - 1) sum (S - n mean)^2) / sum n over k sequences, times the perplexity for the
perplexity's. Of a single sequence there is none. Perplexities compare only between models with the same tokenizer.

Memory: what a conversation of 2048 ids takes, one model at a time; of a pass only the last layer's residuals are kept,
and SCORES_BYTES are enough for the scores of a few ids at a time, however large the vocabulary.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from glmcpu import limits, texts
from glmcpu.backends import Floats
from glmcpu.errors import DataError, shown
from glmcpu.kernels import BLOCK
from glmcpu.model import Model
from glmcpu.models import Part
from glmcpu.packed import PackedFile
from glmcpu.scoring import Doubles, Probabilities, Tokens, kl_divergence, probabilities
from glmcpu.tokenizers.chatglm import Tokenizer

Progress = Callable[[int, int], None]

SCORES_BYTES = 64 << 20
_PASS_POSITIONS = 2048  # of the caches of a pass
_BYTES_PER_SCORE = 56  # float32 scores, float64 probabilities and logarithms of three models, and a difference


class Text:
    """The sequences of a file for a tokenizer, read anew at each iteration.

    items, ids, scored   how many sequences, ids in them, and ids to predict
    """

    def __init__(self, path: Path, tokenizer: Tokenizer, longest: int, most: int | None = None) -> None:
        """Reads it once. `longest` ids a sequence; after `most` scored ids it ends, in the middle of a sequence.

        Raises DataError as texts.sequences does, and for more than limits.EVAL_TOKENS ids to score.
        """
        self.path = path
        self._tokenizer, self._longest, self._most = tokenizer, longest, most
        self.items = self.ids = self.scored = 0
        for sequence in self:
            self.items += 1
            self.ids += len(sequence.ids)
            self.scored += len(sequence.ids) - sequence.begin
            if self.scored > limits.EVAL_TOKENS:
                raise DataError(
                    f"{sequence.where}: more than {limits.EVAL_TOKENS:,} tokens to score; pass --max-tokens"
                )

    def __iter__(self) -> Iterator[texts.Sequence]:
        left = limits.EVAL_TOKENS + 1 if self._most is None else self._most
        for sequence in texts.sequences(self.path, self._tokenizer, longest=self._longest):
            ids = sequence.ids[: sequence.begin + left]
            yield sequence._replace(ids=ids)
            left -= len(ids) - sequence.begin
            if left <= 0:
                return


def tokenizer_of(models: Sequence[Model]) -> Tokenizer:
    """The tokenizer that all models share; raises DataError where one has none or another than the first."""
    first = models[0]
    data = PackedFile(first.path).tokenizer()
    for model in models:
        _tokenizer(model)
        rows, expected = model.config.vocabulary, first.config.vocabulary
        if rows != expected or PackedFile(model.path).tokenizer() != data:
            what = f"a vocabulary of {rows:,}, not {expected:,}" if rows != expected else "another tokenizer"
            raise DataError(
                f"{shown(model.path)}: has {what}, as {shown(first.path)}: the two cannot be compared id by id; "
                "choose models of one origin"
            )
    return _tokenizer(first)


def _tokenizer(model: Model) -> Tokenizer:
    if model.tokenizer is None:
        raise DataError(
            f"{shown(model.path)}: has no tokenizer, and a text cannot be read without; convert the model again with "
            "--tokenizer FILE"
        )
    return model.tokenizer


def evaluate(
    models: Sequence[Model], text: Text, reference: Model | None = None, progress: Progress | None = None
) -> list[Tokens]:
    """Measures models on a text that all of them can read: the reference first where there is one, then each model.

    progress(ids done, ids in all), over all models. Raises DataError when scores are not finite.
    """
    runs = [_Run(model) for model in ([] if reference is None else [reference])] + [_Run(model) for model in models]
    done, total = 0, text.ids * len(runs)
    lengths: list[int] = []
    prefix = max(run.model.adapter.prefix_tokens if run.model.adapter else 0 for run in runs)
    for group in _passes(text, prefix):
        states = []
        for run in runs:
            states.append(run.read(group, done, total, progress))
            done += sum(len(sequence.ids) for sequence in group)
        lengths += [len(sequence.ids) - sequence.begin for sequence in group]
        targets = np.concatenate([sequence.ids[sequence.begin :] for sequence in group])
        step = max(1, SCORES_BYTES // (_BYTES_PER_SCORE * runs[0].model.config.vocabulary))
        for begin in range(0, len(targets), step):
            some, first = slice(begin, begin + step), None
            for run, state in zip(runs, states, strict=True):
                found = run.score(state[some], targets[some])
                if first is not None:
                    run.compare(found, first)
                elif reference is not None:
                    first = found
    if progress:
        progress(total, total)
    return [run.tokens(lengths) for run in runs]


@dataclass
class _Run:
    """One model's way through the text."""

    model: Model
    nll: list[Doubles] = field(default_factory=list)
    kl: list[Doubles] = field(default_factory=list)
    same_top: list[NDArray[np.bool_]] = field(default_factory=list)
    change: list[Doubles] = field(default_factory=list)
    seconds: float = 0.0

    def read(self, group: Sequence[texts.Sequence], done: int, total: int, progress: Progress | None) -> Floats:
        """The last layer's residuals (t, C) before each scored id of the sequences, in one pass."""
        begin_s = time.perf_counter()
        model, layers = self.model.language_model, self.model.config.layers
        # The last id is predicted, never read.
        parts = [Part(sequence.ids[:-1], model.new_cache(len(sequence.ids) - 1)) for sequence in group]
        ids = sum(len(sequence.ids) for sequence in group)
        places, at = [], 0
        for sequence in group:
            places.append(np.arange(at + sequence.begin - 1, at + len(sequence.ids) - 1))
            at += len(sequence.ids) - 1
        state: list[Floats] = []

        def observe(n: int, x: Floats) -> None:
            if progress:
                progress(done + ids * n // layers, total)
            if n == layers:
                state.append(x[np.concatenate(places)])

        # Scores of all ids at once would be gigabytes: only one is asked for here.
        model.forward(parts, after_layer=observe, wanted=np.zeros(1, np.int64))
        self.seconds += time.perf_counter() - begin_s
        return state[0]

    def score(self, state: Floats, targets: NDArray[np.int64]) -> Probabilities:
        """The probabilities after residuals (t, C), of which those of the targets (t,) are kept."""
        begin_s = time.perf_counter()
        scores = self.model.language_model.scores(state)
        if not np.isfinite(scores).all():
            raise DataError(
                f"{shown(self.model.path)}: gives scores that are NaN or infinite; look for damage with: glmcpu verify"
            )
        found = probabilities(scores)
        self.nll.append(-found.log[np.arange(len(targets)), targets])
        self.seconds += time.perf_counter() - begin_s
        return found

    def compare(self, found: Probabilities, reference: Probabilities) -> None:
        """Keeps how far this model's probabilities are from the reference's."""
        self.kl.append(kl_divergence(found, reference))
        self.same_top.append(found.log.argmax(axis=1) == reference.log.argmax(axis=1))
        self.change.append(np.abs(found.p - reference.p).max(axis=1))

    def tokens(self, lengths: Sequence[int]) -> Tokens:
        """All that was kept."""
        nothing = np.zeros(0)
        return Tokens(
            nll=np.concatenate(self.nll),
            kl=np.concatenate(self.kl or [nothing]),
            same_top=np.concatenate(self.same_top or [nothing.astype(np.bool_)]),
            change=np.concatenate(self.change or [nothing]),
            lengths=np.array(lengths, np.int64),
            seconds=self.seconds,
        )


def _passes(text: Text, prefix: int = 0) -> Iterator[list[texts.Sequence]]:
    """The sequences, as many together as fit into _PASS_POSITIONS, or a longer one alone, each behind its prefix."""
    group: list[texts.Sequence] = []
    positions = 0
    for sequence in text:
        more = -(-(prefix + len(sequence.ids)) // BLOCK) * BLOCK  # a cache grows in blocks
        if group and positions + more > _PASS_POSITIONS:
            yield group
            group, positions = [], 0
        group.append(sequence)
        positions += more
    yield group
