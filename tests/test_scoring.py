"""Probabilities, divergence and standard errors against their plain definitions."""

import math

import numpy as np
import pytest

from glmcpu.scoring import Tokens, kl_divergence, mean_and_error, probabilities, summarize

RANDOM = np.random.default_rng(3)


def scores(t: int = 7, V: int = 50, size: float = 4.0) -> np.ndarray:
    return (RANDOM.standard_normal((t, V)) * size).astype(np.float32)


def test_probabilities_are_the_softmax_and_its_logarithm() -> None:
    x = scores(size=30)
    found = probabilities(x)
    for row, p, log in zip(x.tolist(), found.p, found.log, strict=True):
        total = math.fsum(math.exp(value) for value in row)
        np.testing.assert_allclose(p, [math.exp(value) / total for value in row], rtol=1e-13)
        np.testing.assert_allclose(log, [value - math.log(total) for value in row], rtol=1e-13, atol=1e-13)


def test_scores_of_any_size_have_probabilities() -> None:
    for extreme in (1e30, -1e30):
        x = scores()
        x[:, 3] = extreme
        found = probabilities(x)
        np.testing.assert_allclose(found.p.sum(axis=1), 1)
        assert np.isfinite(found.log).all()
        assert np.isfinite(kl_divergence(found, probabilities(scores()))).all()


def test_divergence_is_the_sum_of_p_ref_ln_p_ref_over_p() -> None:
    a, b = probabilities(scores()), probabilities(scores())
    expected = [
        math.fsum(p * math.log(p / q) for p, q in zip(*rows, strict=True)) for rows in zip(b.p, a.p, strict=True)
    ]
    np.testing.assert_allclose(kl_divergence(a, b), expected, rtol=1e-12)
    assert (kl_divergence(b, b) == 0).all()


def test_divergence_is_never_negative() -> None:
    x = scores(400, 300, 0.1)
    near = x + np.float32(1e-7) * scores(400, 300, 1)
    assert (kl_divergence(probabilities(near.astype(np.float32)), probabilities(x)) >= 0).all()


def test_the_standard_error_is_that_of_independent_sequences() -> None:
    """Ten equal ids in each sequence tell no more than one."""
    one = RANDOM.standard_normal(40)
    alone = mean_and_error(one, np.ones(40, np.int64))
    assert alone == (pytest.approx(one.mean()), pytest.approx(one.std(ddof=1) / math.sqrt(40)))
    assert mean_and_error(np.repeat(one, 10), np.full(40, 10)) == (pytest.approx(alone[0]), pytest.approx(alone[1]))
    assert mean_and_error(one, np.array([40]))[1] is None


def test_the_standard_error_is_the_spread_of_means_of_many_texts() -> None:
    means, errors = [], []
    for _ in range(400):
        lengths = RANDOM.integers(1, 12, 60)
        values = np.repeat(RANDOM.standard_normal(60), lengths) + RANDOM.standard_normal(lengths.sum())
        mean, error = mean_and_error(values, lengths)
        means.append(mean)
        errors.append(error)
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.15)


def tokens(nll: np.ndarray, kl: np.ndarray) -> Tokens:
    n = len(kl)
    top, change = np.arange(n) % 4 > 0, np.linspace(0, 0.5, n)
    return Tokens(nll, kl, top, change, np.array([len(nll) // 2, len(nll) - len(nll) // 2]), 1.5)


def test_a_summary_has_the_numbers_of_its_tokens() -> None:
    nll, kl = RANDOM.random(100), RANDOM.random(100)
    found = summarize(tokens(nll, kl))
    assert found.perplexity == pytest.approx(math.exp(nll.mean()))
    mean, error = mean_and_error(nll, np.array([50, 50]))
    assert found.perplexity_se == pytest.approx(math.exp(mean) * (error or 0))
    assert (found.tokens, found.seconds) == (100, 1.5)
    assert found.kl is not None
    assert (found.kl.median, found.kl.p99) == (pytest.approx(np.median(kl)), pytest.approx(np.quantile(kl, 0.99)))
    assert (found.kl.max, found.kl.quantiles["1"], found.kl.quantiles["0"]) == (kl.max(), kl.max(), kl.min())
    assert (found.kl.top1, found.kl.largest_change) == (0.75, 0.5)


def test_without_a_reference_there_is_no_divergence_and_a_hopeless_model_has_no_perplexity() -> None:
    found = summarize(tokens(np.full(10, 1e4), np.zeros(0)))
    assert found.kl is None
    assert found.perplexity == math.inf
