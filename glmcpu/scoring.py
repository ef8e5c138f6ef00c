"""From scores to numbers: probabilities, how far two models' are apart, and means with their standard errors.

All in float64: a KL divergence is a small difference of large sums. Of a model and itself it is exactly 0.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

QUANTILES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0)


class Probabilities(NamedTuple):
    """A softmax over the vocabulary and its logarithm, (t, V) float64."""

    p: Doubles
    log: Doubles


def probabilities(scores: NDArray[np.float32]) -> Probabilities:
    """The softmax of each row of scores (t, V)."""
    log = scores.astype(np.float64)
    log -= log.max(axis=1, keepdims=True)
    p = np.exp(log)
    total = p.sum(axis=1, keepdims=True)
    p /= total
    log -= np.log(total)
    return Probabilities(p, log)


def kl_divergence(found: Probabilities, reference: Probabilities) -> Doubles:
    """KL(reference || found) of each row (t,), in nats; what rounding makes negative is 0."""
    terms = reference.log - found.log
    terms *= reference.p
    total: Doubles = np.maximum(terms.sum(axis=1), 0)
    return total


@dataclass
class Tokens:
    """One model at every scored id, n of them in order."""

    nll: Doubles  # (n,) -ln p
    kl: Doubles  # (n,) against the reference; this and the next two empty without one
    same_top: NDArray[np.bool_]  # (n,)
    change: Doubles  # (n,)
    lengths: NDArray[np.int64]  # (k,) scored ids of each sequence; their sum is n
    seconds: float  # spent on this model


@dataclass(frozen=True)
class Divergence:
    """How far a model is from the reference."""

    mean: float
    se: float | None
    median: float
    p99: float
    max: float
    quantiles: dict[str, float]  # share of the tokens that lie below -> KL
    top1: float  # share of the tokens
    top1_se: float | None
    largest_change: float  # of a probability


@dataclass(frozen=True)
class Summary:
    """The numbers of one model."""

    tokens: int
    perplexity: float
    perplexity_se: float | None
    nll: float
    kl: Divergence | None
    seconds: float


def summarize(tokens: Tokens) -> Summary:
    """Means and standard errors of a model."""
    nll, nll_se = mean_and_error(tokens.nll, tokens.lengths)
    try:
        perplexity = math.exp(nll)
    except OverflowError:
        perplexity = math.inf
    return Summary(
        tokens=len(tokens.nll),
        perplexity=perplexity,
        perplexity_se=None if nll_se is None or math.isinf(perplexity) else perplexity * nll_se,
        nll=nll,
        kl=_divergence(tokens) if len(tokens.kl) else None,
        seconds=tokens.seconds,
    )


def _divergence(tokens: Tokens) -> Divergence:
    mean, se = mean_and_error(tokens.kl, tokens.lengths)
    top1, top1_se = mean_and_error(tokens.same_top.astype(np.float64), tokens.lengths)
    known = dict(zip(QUANTILES, np.quantile(tokens.kl, QUANTILES).tolist(), strict=True))
    return Divergence(
        mean=mean,
        se=se,
        median=known[0.5],
        p99=known[0.99],
        max=known[1.0],
        quantiles={f"{share:g}": value for share, value in known.items()},
        top1=top1,
        top1_se=top1_se,
        largest_change=float(tokens.change.max()),
    )


def mean_and_error(values: Doubles, lengths: NDArray[np.int64]) -> tuple[float, float | None]:
    """The mean of values (n,) and its standard error, sequences of these lengths being independent of each other."""
    mean, k = float(values.mean()), len(lengths)
    if k < 2:
        return mean, None
    sums = np.add.reduceat(values, np.cumsum(lengths) - lengths)
    spread = float(np.square(sums - mean * lengths).sum())
    return mean, math.sqrt(k / (k - 1) * spread) / len(values)
