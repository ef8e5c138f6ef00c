"""From scores to an id: the official distributions, every limit, and seeds that repeat."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glmcpu import sampling
from glmcpu.errors import UsageError
from glmcpu.sampling import Sampler, likeliest, log_probability

DATA = Path(__file__).parent / "data"
OFF = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}


def _logits(size: int = 100, spread: float = 3.0, seed: int = 0) -> Any:
    return (np.random.default_rng(seed).standard_normal(size) * spread).astype(np.float32)


def test_distributions_equal_the_official_ones() -> None:
    about = json.loads((DATA / "sampling.json").read_text("utf-8"))
    with np.load(DATA / "sampling.npz") as file:
        logits, history, expected = file["logits"], file["history_ids"][0], file["probs"]
    for i, params in enumerate(about["params"]):
        sampler = Sampler(**_params(about, params))
        for j, kind in enumerate(about["logits_kind"]):
            found, wanted = sampler.probabilities(logits[j], history), expected[i, j]
            if kind in ("ties", "flat"):  # which of the equal ones top_p drops is up to the sort
                found, wanted = np.sort(found), np.sort(wanted)
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6, err_msg=f"{params} {kind}")


def _params(about: Any, params: Any) -> Any:
    defaults = {name: about["defaults"][name] for name in ("temperature", "top_p", "top_k")}
    return defaults | params


def test_defaults_are_those_of_chat() -> None:
    assert Sampler() == Sampler(temperature=0.95, top_p=0.7, top_k=50, repetition_penalty=1.0, seed=None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("temperature", value) for value in (-0.1, float("nan"), float("inf"), "hot", None, True, 10**400)],
        *[("top_p", value) for value in (0, -1, 1.0001, float("nan"), "0.7")],
        *[("top_k", value) for value in (-1, 1.5, None, "50", True)],
        *[("repetition_penalty", value) for value in (0, -1, float("inf"), float("nan"))],
        *[("seed", value) for value in (-1, 1.5, "1", False)],
        *[("presence_penalty", value) for value in (float("inf"), float("nan"), "1", None)],
        *[("frequency_penalty", value) for value in (float("-inf"), float("nan"), "1", None)],
        *[("logit_bias", value) for value in ({-1: 1.0}, {1.5: 1.0}, {"1": 1.0}, {1: float("inf")}, {1: "x"}, [1])],
    ],
)
def test_a_value_out_of_range_is_named_with_the_range(name: str, value: object) -> None:
    arguments: Any = {name: value}
    with pytest.raises(UsageError, match=f"^{name} is .*, and must be a .*number"):
        Sampler(**arguments)


def test_values_at_the_edges_and_numpy_numbers_are_accepted() -> None:
    Sampler(temperature=0, top_p=1, top_k=0, repetition_penalty=1e-3, seed=2**70)
    integers: Any = {"top_k": np.int64(3), "seed": np.int32(0), "temperature": np.float32(0.5)}
    Sampler(**integers).start().choose(_logits())


def test_temperature_zero_takes_the_largest_score() -> None:
    logits = _logits()
    assert Sampler(temperature=0).start().choose(logits) == logits.argmax()
    assert Sampler(temperature=0).probabilities(logits)[logits.argmax()] == 1


def test_greedy_choice_comes_after_the_repetition_penalty() -> None:
    logits = np.array([3.0, 2.9, -1.0], np.float32)
    assert Sampler(temperature=0, repetition_penalty=1.2).start().choose(logits, [0, 0, 2]) == 1
    assert Sampler(temperature=0, repetition_penalty=1.01).start().choose(logits, [0, 0, 2]) == 0


def test_the_repetition_penalty_leaves_the_models_scores_alone() -> None:
    logits = _logits()
    before = logits.copy()
    Sampler(repetition_penalty=2).probabilities(logits, [1, 2, 3])
    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_invalid_score_makes_every_choice_id_five(value: float) -> None:
    logits = _logits()
    logits[50] = value
    for temperature in (0, 0.95, 1000):
        assert Sampler(temperature=temperature).start().choose(logits) == 5
    assert log_probability(logits, 5) == 0
    assert log_probability(logits, 6) == -50000


def test_top_k_keeps_all_that_equal_the_kth() -> None:
    logits = np.array([1, 5, 5, 5, 0], np.float32)
    np.testing.assert_allclose(Sampler(**{**OFF, "top_k": 1}).probabilities(logits), [0, 1 / 3, 1 / 3, 1 / 3, 0])


@pytest.mark.parametrize("top_p", [1e-300, 1e-9, 0.5])
@pytest.mark.parametrize("top_k", [0, 1, 3, 1000])
def test_one_id_at_least_survives(top_p: float, top_k: int) -> None:
    for logits in (_logits(), np.zeros(100, np.float32), np.zeros(1, np.float32)):
        probs = Sampler(top_p=top_p, top_k=top_k).probabilities(logits)
        assert probs.sum() == pytest.approx(1)


def test_top_p_keeps_the_fewest_likely_ids_that_reach_it() -> None:
    for seed in range(20):
        logits = _logits(1000, seed=seed)
        full = Sampler(**OFF).probabilities(logits)
        kept = Sampler(**{**OFF, "top_p": 0.8}).probabilities(logits) > 0
        assert full[kept].min() >= full[~kept].max()
        assert full[kept].sum() >= 0.8 > full[kept].sum() - full[kept].min()


@pytest.mark.parametrize("temperature", [5e-324, 1e-45, 1e-9, 1e9, 1e300])
@pytest.mark.parametrize("penalty", [1e-300, 1e-9, 1.0, 1e9, 1e300])
def test_extreme_values_give_a_distribution(temperature: float, penalty: float) -> None:
    logits = _logits()
    logits[0] = 0
    probs = Sampler(temperature=temperature, repetition_penalty=penalty).probabilities(logits, range(10))
    assert np.isfinite(probs).all()
    assert probs.sum() == pytest.approx(1)


def test_a_tiny_temperature_is_greedy() -> None:
    logits = _logits()
    assert Sampler(temperature=1e-300).probabilities(logits)[logits.argmax()] == 1


def test_every_start_with_a_seed_repeats_the_choices() -> None:
    rows = [_logits(seed=i) for i in range(50)]
    sampler = Sampler(seed=7, temperature=2.0)
    draw, again, other = sampler.start(), sampler.start(), Sampler(seed=8, temperature=2.0).start()
    ids = [draw.choose(row) for row in rows]
    assert [again.choose(row) for row in rows] == ids
    assert [other.choose(row) for row in rows] != ids


def test_without_a_seed_two_starts_differ() -> None:
    flat = np.zeros(1 << 16, np.float32)
    first, second = (Sampler(**OFF).start() for _ in range(2))
    assert [first.choose(flat) for _ in range(4)] != [second.choose(flat) for _ in range(4)]


def test_choices_follow_the_distribution() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.2, 1e-30], np.float32))
    draw = Sampler(**OFF, seed=0).start()
    counts = np.bincount([draw.choose(logits) for _ in range(20000)], minlength=4) / 20000
    np.testing.assert_allclose(counts, [0.5, 0.3, 0.2, 0], atol=0.02)


def test_log_probability_is_the_log_softmax_of_the_raw_scores() -> None:
    logits = _logits()
    probs = Sampler(**OFF).probabilities(logits)
    assert log_probability(logits, 3) == pytest.approx(np.log(probs[3]), abs=1e-6)
    assert np.isfinite(log_probability(np.array([3e38, -3e38], np.float32), 1))


def test_a_choice_from_the_whole_vocabulary_takes_milliseconds() -> None:
    logits = _logits(130528)
    draw = Sampler(seed=0).start()
    start = time.perf_counter()
    for _ in range(10):
        draw.choose(logits)
    assert time.perf_counter() - start < 0.2


@pytest.mark.parametrize("size", [1, 63, 64, 130, 5000])
def test_the_k_largest_are_what_sorting_gives_ties_included_and_ascending(size: int) -> None:
    scores = np.random.default_rng(size).integers(-50, 50, size).astype(np.float32)
    for k in {1, 2, 50, size // 64 + 1, size} & set(range(1, size + 1)):
        assert np.array_equal(sampling._top(scores, k), np.flatnonzero(scores >= np.sort(scores)[-k]))


def test_presence_and_frequency_count_ids_of_the_answer_only() -> None:
    logits = np.zeros(5, np.float32)
    scores = Sampler(presence_penalty=0.5, frequency_penalty=0.25).scores(logits, [0, 0, 1, 2, 2, 2], prompt=2)
    np.testing.assert_array_equal(scores, np.float32([0, -0.75, -1.25, 0, 0]))


def test_a_negative_penalty_makes_said_ids_likelier() -> None:
    sampler = Sampler(temperature=0, frequency_penalty=-1)
    assert sampler.start(prompt=1).choose(np.zeros(4, np.float32), [3, 2]) == 2


def test_logit_bias_is_added_to_the_scores_and_leaves_them_as_they_were() -> None:
    logits = _logits()
    before = logits.copy()
    scores = Sampler(logit_bias={3: 2.5, 0: -100}).scores(logits)
    expected = before.copy()
    expected[[3, 0]] += np.float32([2.5, -100])
    np.testing.assert_array_equal(scores, expected)
    np.testing.assert_array_equal(logits, before)


def test_logit_bias_for_an_id_the_model_has_not_is_named() -> None:
    with pytest.raises(UsageError, match=r"id 100,.* 0 to 99"):
        Sampler(logit_bias={100: 1}).start().choose(_logits(100))


@pytest.mark.parametrize("temperature", [0, 0.7])
def test_only_allowed_ids_are_drawn(temperature: float) -> None:
    allowed = np.array([3, 17, 98])
    draw = Sampler(temperature=temperature, top_k=2, top_p=0.9, seed=1).start()
    drawn = {draw.choose(_logits(seed=n), allowed=allowed) for n in range(200)}
    assert drawn == set(allowed)


def test_allowed_ids_have_the_probabilities_of_the_rest_being_impossible() -> None:
    logits, allowed = _logits(), np.array([1, 5, 50])
    alone = np.full_like(logits, -1e30)
    alone[allowed] = logits[allowed]
    found = Sampler(**OFF).probabilities(logits, allowed=allowed)
    np.testing.assert_allclose(found, Sampler(**OFF).probabilities(alone), atol=1e-12)


def test_likeliest_are_the_largest_log_probabilities_in_order() -> None:
    for size in (1, 3, 1000):
        logits = np.round(_logits(size), 1)  # some are equal
        order = np.argsort(-logits, kind="stable")[:5]
        found = likeliest(logits, 5)
        assert [token for token, _ in found] == order.tolist()
        assert [value for _, value in found] == [log_probability(logits, token) for token in order]
