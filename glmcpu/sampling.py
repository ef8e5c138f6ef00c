"""Scores to one id: the official chain of ChatGLM-6B, step by step over the V scores of one sequence.

    1 repetition penalty   the score of every id of prompt and answer, once: below 0 multiplied by it, others divided
    2 penalties and bias   of every id of the answer: presence once, frequency for each time; then the bias of an id
    3 invalid scores       when any is NaN or infinite, all become 0 and that of id 5 (a blank) 50000
    4 allowed ids          where something else decides what may follow, all others are dropped
    5 temperature          scores are divided by it; 0 stops here and takes the largest score (greedy)
    6 top_k                scores below the k-th largest are dropped; those equal to it stay
    7 top_p                of the rest, the least likely ids that together have at most 1 - top_p are dropped

Step 2 is what OpenAI's API means by these names, and official code has neither it nor step 4. Steps 1 to 6 run in
float32 like the official code, because they decide what is equal; probabilities are float64 and exist for the survivors
only. One uniform number, looked up in the cumulative sum over ids in order, gives the id: equal scores and an equal
seed give equal text.
"""

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glmcpu.errors import UsageError, printable

Scores = NDArray[np.floating[Any]]
Probabilities = NDArray[np.float64]
Ids = NDArray[np.intp]

_SAFE_ID, _SAFE_SCORE = 5, 5e4
_ROWS = 64


@dataclass(frozen=True)
class Sampler:
    """How the next id is chosen; the defaults are those of the official chat().

    temperature         0 is greedy, 1 the model's own distribution, higher more even
    top_p               in (0, 1]; 1 is off
    top_k               0 is off
    repetition_penalty  above 1 makes ids seen before less likely; 1 is off
    seed                equal seeds give equal answers; None is different each time
    presence_penalty    above 0 makes ids that the answer has less likely, below 0 more; 0 is off
    frequency_penalty   the same, for each time it has them
    logit_bias          added to the scores of ids; -100 keeps an id out, 100 keeps all others out

    Raises UsageError for a value out of its range.
    """

    temperature: float = 0.95
    top_p: float = 0.7
    top_k: int = 50
    repetition_penalty: float = 1.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        temperature, top_p, penalty = map(_number, (self.temperature, self.top_p, self.repetition_penalty))
        for name, holds, expected in (
            ("temperature", temperature >= 0, "a finite number >= 0; 0 is greedy"),
            ("top_p", 0 < top_p <= 1, "a number above 0 and at most 1; 1 is off"),
            ("top_k", _is_count(self.top_k), "a whole number >= 0; 0 is off"),
            ("repetition_penalty", penalty > 0, "a finite number above 0; 1 is off"),
            ("seed", self.seed is None or _is_count(self.seed), "a whole number >= 0, or None"),
            ("presence_penalty", math.isfinite(_number(self.presence_penalty)), "a finite number; 0 is off"),
            ("frequency_penalty", math.isfinite(_number(self.frequency_penalty)), "a finite number; 0 is off"),
            ("logit_bias", _is_bias(self.logit_bias), "a finite number for each id, a whole number >= 0"),
        ):
            if not holds:
                raise UsageError(f"{name} is {printable(getattr(self, name))}, and must be {expected}")

    def start(self, prompt: int = 0) -> "Draw":
        """The choices of one answer to `prompt` ids; with a seed, every start gives the same ones."""
        return Draw(self, prompt)

    def probabilities(
        self, logits: Scores, ids: Sequence[int] = (), prompt: int = 0, allowed: Ids | None = None
    ) -> Probabilities:
        """The distribution (V,) f64 that an id is drawn from.

        logits   (V,) f32   raw scores of the model
        ids      prompt and answer so far, each in 0..V-1; read by the penalties only
        prompt   how many of them are the prompt
        allowed  ascending: the ids that may follow; None: all
        """
        survivors, probs = self.survivors(logits, ids, prompt, allowed)
        distribution = np.zeros(len(logits))
        distribution[survivors] = probs
        return distribution

    def survivors(
        self, logits: Scores, ids: Sequence[int] = (), prompt: int = 0, allowed: Ids | None = None
    ) -> tuple[Ids, Probabilities]:
        """The ids that can be drawn, ascending, and their probabilities; the rest of V has probability 0."""
        scores = self.scores(logits, ids, prompt)
        if allowed is not None:
            places, probs = self._of_scores(scores[allowed])
            return allowed[places], probs
        return self._of_scores(scores)

    def _of_scores(self, scores: Scores) -> tuple[Ids, Probabilities]:
        """Steps 5 to 7: the places in `scores` that survive, and their probabilities."""
        if self.temperature == 0:
            return np.array([scores.argmax()]), np.ones(1)
        scores = _divide(scores, float(self.temperature))
        if 0 < self.top_k < len(scores):
            survivors = _top(scores, self.top_k)
            probs = _softmax(scores[survivors])
        else:
            survivors, probs = np.arange(len(scores)), _softmax(scores)
        if self.top_p < 1:
            kept = _top_p(probs, float(self.top_p))
            survivors, probs = survivors[kept], probs[kept] / probs[kept].sum()
        return survivors, probs

    def scores(self, logits: Scores, ids: Sequence[int] = (), prompt: int = 0) -> Scores:
        """Steps 1 to 3: (V,) f32, finite, the largest of which greedy choice takes."""
        scores = np.asarray(logits, np.float32)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            if self.repetition_penalty != 1 and len(ids):
                scores, seen, penalty = scores.copy(), np.unique(np.asarray(ids)), np.float32(self.repetition_penalty)
                scores[seen] = np.where(scores[seen] < 0, scores[seen] * penalty, scores[seen] / penalty)
            if (self.presence_penalty or self.frequency_penalty) and len(ids) > prompt:
                scores, (said, times) = scores.copy(), np.unique(np.asarray(ids[prompt:]), return_counts=True)
                scores[said] -= np.float32(self.presence_penalty) + np.float32(self.frequency_penalty) * times
            if self.logit_bias:
                scores = scores.copy()
                scores[self._biased(len(scores))] += np.array([*self.logit_bias.values()], np.float32)
        return _valid(scores)

    def _biased(self, size: int) -> list[int]:
        if (highest := max(self.logit_bias)) >= size:
            raise UsageError(f"logit_bias is for id {highest:,}, and the model has ids 0 to {size - 1:,}; leave it out")
        return [*self.logit_bias]


class Draw:
    """The choices of one answer: a Sampler and the state of its random numbers."""

    def __init__(self, sampler: Sampler, prompt: int = 0) -> None:
        self._sampler, self._prompt = sampler, prompt
        self._generator = np.random.Generator(np.random.PCG64(sampler.seed))

    def choose(self, logits: Scores, ids: Sequence[int] = (), allowed: Ids | None = None) -> int:
        """The next id, of those `allowed`, from `logits` (V,) f32 after `ids` (prompt and answer so far)."""
        survivors, probs = self._sampler.survivors(logits, ids, self._prompt, allowed)
        if len(survivors) == 1:
            return int(survivors[0])
        cumulative = probs.cumsum(out=probs)
        place = np.searchsorted(cumulative, self._generator.random() * cumulative[-1], side="right")
        last = np.searchsorted(cumulative, cumulative[-1])  # not one of probability 0 behind it
        return int(survivors[min(place, last)])


def log_probability(logits: Scores, token: int) -> float:
    """The natural logarithm of the model's own probability of `token`: log-softmax of `logits` (V,) f32.

    Invalid logits count as step 3 makes them, so the result is always finite.
    """
    scores = _valid(np.asarray(logits, np.float32))
    return float(scores[token]) - _log_total(scores)


def likeliest(logits: Scores, count: int) -> tuple[tuple[int, float], ...]:
    """The `count` likeliest ids and their log-probabilities, the likeliest first; of equal ones the lowest id."""
    scores = _valid(np.asarray(logits, np.float32))
    total, candidates = _log_total(scores), _top(scores, min(count, len(scores)))
    first = candidates[np.argsort(-scores[candidates], kind="stable")][:count]
    return tuple((int(token), float(scores[token]) - total) for token in first)


def _log_total(scores: Scores) -> float:
    """The logarithm of the sum of exp(scores), which are finite."""
    largest = scores.max()
    with np.errstate(over="ignore", under="ignore"):  # scores may lie further apart than float32 reaches
        weights = scores - largest
        total = np.exp(weights, out=weights).sum(dtype=np.float64)
    return float(largest) + math.log(total)


def _valid(scores: Scores) -> Scores:
    if np.isfinite(scores).all():
        return scores
    safe = np.zeros_like(scores)
    safe[min(_SAFE_ID, len(safe) - 1)] = _SAFE_SCORE
    return safe


def _top(scores: Scores, k: int) -> Ids:
    """The places of the k largest scores, ascending, and of all that equal the last of them.

    Scores are looked at in columns. A column whose largest is below the k-th largest of the columns' has none of them,
    and that is most.
    """
    columns = len(scores) // _ROWS
    if columns < k:
        places = np.arange(len(scores))
    else:
        highest = scores[: columns * _ROWS].reshape(_ROWS, columns).max(axis=0)
        some = np.flatnonzero(highest >= np.partition(highest, -k)[-k])
        inside = (np.arange(_ROWS)[:, None] * columns + some).reshape(-1)
        places = np.concatenate([inside, np.arange(columns * _ROWS, len(scores))])
    candidates = scores[places]
    return np.sort(places[candidates >= np.partition(candidates, -k)[-k]])


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


def _is_bias(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        _is_count(token) and math.isfinite(_number(bias)) for token, bias in value.items()
    )
