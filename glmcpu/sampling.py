"""Scores to one id: the official chain of ChatGLM-6B, step by step over the V scores of one sequence.

    1 repetition penalty   the score of every id of prompt and answer, once: below 0 multiplied by it, others divided
    2 invalid scores       when any is NaN or infinite, all become 0 and that of id 5 (a blank) 50000
    3 temperature          scores are divided by it; 0 stops here and takes the largest score (greedy)
    4 top_k                scores below the k-th largest are dropped; those equal to it stay
    5 top_p                of the rest, the least likely ids that together have at most 1 - top_p are dropped

Steps 1 to 4 run in float32 like the official code, because they decide what is equal; probabilities are float64 and
exist for the survivors only. One uniform number, looked up in the cumulative sum over ids in order, gives the id: equal
scores and an equal seed give equal text.
"""

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glmcpu.errors import UsageError, printable

Scores = NDArray[np.floating[Any]]
Probabilities = NDArray[np.float64]

_SAFE_ID, _SAFE_SCORE = 5, 5e4
_PIECE = 64


@dataclass(frozen=True)
class Sampler:
    """How the next id is chosen; the defaults are those of the official chat().

    temperature         0 is greedy, 1 the model's own distribution, higher more even
    top_p               in (0, 1]; 1 is off
    top_k               0 is off
    repetition_penalty  above 1 makes ids seen before less likely; 1 is off
    seed                equal seeds give equal answers; None is different each time

    Raises UsageError for a value out of its range.
    """

    temperature: float = 0.95
    top_p: float = 0.7
    top_k: int = 50
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        temperature, top_p, penalty = map(_number, (self.temperature, self.top_p, self.repetition_penalty))
        for name, holds, expected in (
            ("temperature", temperature >= 0, "a finite number >= 0; 0 is greedy"),
            ("top_p", 0 < top_p <= 1, "a number above 0 and at most 1; 1 is off"),
            ("top_k", _is_count(self.top_k), "a whole number >= 0; 0 is off"),
            ("repetition_penalty", penalty > 0, "a finite number above 0; 1 is off"),
            ("seed", self.seed is None or _is_count(self.seed), "a whole number >= 0, or None"),
        ):
            if not holds:
                raise UsageError(f"{name} is {printable(getattr(self, name))}, and must be {expected}")

    def start(self) -> "Draw":
        """The choices of one answer; with a seed, every start gives the same ones."""
        return Draw(self)

    def probabilities(self, logits: Scores, ids: Sequence[int] = ()) -> Probabilities:
        """The distribution (V,) f64 that an id is drawn from.

        logits  (V,) f32   raw scores of the model
        ids     prompt and answer so far, each in 0..V-1; read by the repetition penalty only
        """
        survivors, probs = self.survivors(logits, ids)
        distribution = np.zeros(len(logits))
        distribution[survivors] = probs
        return distribution

    def survivors(self, logits: Scores, ids: Sequence[int] = ()) -> tuple[NDArray[np.intp], Probabilities]:
        """The ids that can be drawn, ascending, and their probabilities; the rest of V has probability 0."""
        scores = self.scores(logits, ids)
        if self.temperature == 0:
            return np.array([scores.argmax()]), np.ones(1)
        scores = _divide(scores, float(self.temperature))
        if 0 < self.top_k < len(scores):
            survivors = np.flatnonzero(scores >= _largest(scores, self.top_k))
            probs = _softmax(scores[survivors])
        else:
            survivors, probs = np.arange(len(scores)), _softmax(scores)
        if self.top_p < 1:
            kept = _top_p(probs, float(self.top_p))
            survivors, probs = survivors[kept], probs[kept] / probs[kept].sum()
        return survivors, probs

    def scores(self, logits: Scores, ids: Sequence[int] = ()) -> Scores:
        """Steps 1 and 2: (V,) f32, finite, the largest of which greedy choice takes."""
        scores = np.asarray(logits, np.float32)
        if self.repetition_penalty != 1 and len(ids):
            scores = scores.copy()
            seen = np.unique(np.asarray(ids))
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
                penalty = np.float32(self.repetition_penalty)
                scores[seen] = np.where(scores[seen] < 0, scores[seen] * penalty, scores[seen] / penalty)
        return _valid(scores)


class Draw:
    """The choices of one answer: a Sampler and the state of its random numbers."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self._generator = np.random.Generator(np.random.PCG64(sampler.seed))

    def choose(self, logits: Scores, ids: Sequence[int] = ()) -> int:
        """The next id, from `logits` (V,) f32 after `ids` (prompt and answer so far)."""
        survivors, probs = self._sampler.survivors(logits, ids)
        if len(survivors) == 1:
            return int(survivors[0])
        cumulative = probs.cumsum(out=probs)
        place = np.searchsorted(cumulative, self._generator.random() * cumulative[-1], side="right")
        last = np.searchsorted(cumulative, cumulative[-1])  # not one of probability 0 behind it
        return int(survivors[min(place, last)])


def log_probability(logits: Scores, token: int) -> float:
    """The natural logarithm of the model's own probability of `token`: log-softmax of `logits` (V,) f32.

    Invalid logits count as step 2 makes them, so the result is always finite.
    """
    scores = _valid(np.asarray(logits, np.float32))
    largest = scores.max()
    with np.errstate(over="ignore", under="ignore"):  # scores may lie further apart than float32 reaches
        weights = scores - largest
        total = np.exp(weights, out=weights).sum(dtype=np.float64)
    return float(scores[token]) - float(largest) - math.log(total)


def _valid(scores: Scores) -> Scores:
    if np.isfinite(scores).all():
        return scores
    safe = np.zeros_like(scores)
    safe[min(_SAFE_ID, len(safe) - 1)] = _SAFE_SCORE
    return safe


def _largest(scores: Scores, k: int) -> Any:
    """The k-th largest score. What is below the k-th largest of the pieces' maxima cannot be it, and that is most."""
    pieces = len(scores) // _PIECE
    if pieces >= k:
        maxima = scores[: pieces * _PIECE].reshape(pieces, _PIECE).max(axis=1)
        scores = scores[scores >= np.partition(maxima, -k)[-k]]
    return np.partition(scores, -k)[-k]


def _divide(scores: Scores, temperature: float) -> Scores:
    """scores / temperature in float32; where that overflows, their differences to the largest in float64."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore"):
        divided: Scores = scores / np.float32(temperature)
        if not np.isfinite(divided).all():
            divided = (scores.astype(np.float64) - scores.max()) / temperature
    return divided


def _softmax(scores: Scores) -> Probabilities:
    weights: Probabilities = scores.astype(np.float64)
    weights -= scores.max()  # in place: a new array of all V would be a megabyte of fresh pages each time
    np.exp(weights, out=weights)
    weights /= weights.sum()
    return weights


def _top_p(probs: Probabilities, top_p: float) -> NDArray[np.intp]:
    """The places, ascending, that top_p keeps: always the most likely, whatever rounding says."""
    drop = 1 - top_p
    # Places below an equal share of `drop` are dropped in any order, so the sort sees the few likely ones only.
    likely = np.flatnonzero(probs >= min(drop / len(probs), probs.max()))
    order = likely[np.argsort(probs[likely], kind="stable")]
    cumulative = probs[order].cumsum() + (1 - probs[order].sum())
    cumulative[-1] = np.inf
    return np.sort(order[cumulative > drop])


def _number(value: object) -> float:
    """`value` as a float; NaN, which fails every comparison, for what is no finite number."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return math.nan
    try:
        number = float(value)
    except OverflowError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def _is_count(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= 0
