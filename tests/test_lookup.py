"""The drafts: where they come from, and that they are never dear."""

import random
from collections.abc import Sequence

import pytest

from glmcpu.lookup import Lookup

# Of a draft, in passes: from a machine that waits for memory only to one that only computes.
PRICES = (0.0, 0.05, 0.12, 0.3, 0.8, 1.0)


def rich(most: int = 8, ids: int = 2) -> Lookup:
    """A Lookup that has earned a full account at a low price, and believes that drafts hold."""
    lookup = Lookup(most, ids, 1.0)
    lookup.learn(0, 0, 1.0)
    for _ in range(20):
        lookup.learn(8, 8, 1.4)
        lookup.learn(0, 0, 1.0)
    return lookup


def answer_cost(prompt: Sequence[int], answer: Sequence[int], price: float, load: float = 1.0) -> float:
    """Passes' worth of time for an answer whose ids are known; without drafts it is the number of them less one."""
    lookup = Lookup(8, len(prompt), load * (1 + price * (len(prompt) - 1)))
    ids, cost, end = [*prompt, answer[0]], 0.0, len(prompt) + len(answer)
    while len(ids) < end:
        rest = answer[len(ids) - len(prompt) :]
        drafts = lookup.draft(ids, len(rest) - 1)
        held = next((n for n, (a, b) in enumerate(zip(drafts, rest, strict=False)) if a != b), len(drafts))
        ids += rest[: held + 1]
        cost += 1 + price * len(drafts)
        lookup.learn(len(drafts), held, 1 + price * len(drafts))
    return cost


def text(kinds: int, length: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(kinds) for _ in range(length)]


def test_drafts_are_what_followed_the_end_when_it_stood_there_before() -> None:
    assert rich().draft([*range(30), *range(10, 20)], 5) == [20, 21, 22, 23, 24]


def test_longest_match_counts_and_of_equals_the_latest() -> None:
    assert rich().draft([7, 1, 2, 50, 7, 3, 2, 60, 7, 4, 1, 2], 1) == [50]
    assert rich().draft([2, 50, 2, 60, 2], 1) == [60]


def test_copy_that_reaches_the_end_goes_on_with_itself() -> None:
    assert rich().draft([9, *[1, 2, 3] * 4], 8) == [1, 2, 3, 1, 2, 3, 1, 2]
    assert rich().draft([9, *[5] * 9], 3) == [5, 5, 5]


def test_nothing_is_drafted_where_the_end_is_new() -> None:
    assert rich().draft([1, 2, 3, 4], 8) == []
    assert rich().draft([1], 8) == []


@pytest.mark.parametrize("room", [-1, 0, 1, 3, 8, 100])
def test_drafts_never_exceed_the_room_or_the_most(room: int) -> None:
    ids = list(range(20)) * 2
    assert len(rich().draft(ids, room)) == max(0, min(room, 8))
    assert len(rich(most=3).draft(ids, room)) == max(0, min(room, 3))
    assert rich(most=0).draft(ids, room) == []


def test_first_pass_of_an_answer_has_no_drafts() -> None:
    assert Lookup(8, 2, 1.0).draft([1, 2, 3] * 9, 8) == []


def test_what_was_read_is_not_read_again() -> None:
    class Counted(list[int]):
        reads = 0

        def __getitem__(self, key: object) -> object:  # type: ignore[override]
            Counted.reads += 1
            return super().__getitem__(key)  # type: ignore[index]

    lookup, ids = rich(), Counted(text(100, 3000, 1))
    lookup.draft(ids, 8)
    Counted.reads = 0
    ids.append(5)
    lookup.draft(ids, 8)
    assert Counted.reads < 30


@pytest.mark.parametrize("price", PRICES)
@pytest.mark.parametrize("kinds", [2, 5, 10, 50, 500, 10**6])
@pytest.mark.parametrize("length", [40, 200, 1500])
def test_text_without_repetition_takes_at_most_3_per_cent_longer(price: float, kinds: int, length: int) -> None:
    cost = answer_cost(text(kinds, 300, kinds), text(kinds, length, length), price)
    assert cost <= 1.03 * (length - 1)


@pytest.mark.parametrize("price", PRICES)
def test_matches_that_mislead_take_at_most_3_per_cent_longer(price: float) -> None:
    prompt, rng = text(10**6, 300, 1), random.Random(2)
    starts = [rng.randrange(290) for _ in range(300)]
    for right in (1, 2, 4, 8):
        answer = [i for n, at in enumerate(starts) for i in (*prompt[at : at + right], -n - 1)]
        assert answer_cost(prompt, answer, price) <= 1.03 * (len(answer) - 1)


@pytest.mark.parametrize("price", PRICES)
def test_repetition_that_ends_is_followed_by_few_failures(price: float) -> None:
    prompt = text(10**6, 300, 1)
    copied, rest = prompt[:250], text(20, 600, 5)
    after = answer_cost(prompt, [*copied, *rest], price) - answer_cost(prompt, copied, price)
    assert after <= 1.03 * len(rest) + 17 * price


@pytest.mark.parametrize(("price", "times"), [(0.05, 3.5), (0.12, 2.5), (0.3, 1.8), (0.8, 1.05)])
def test_copy_is_faster_by_what_a_draft_is_cheaper_than_a_pass(price: float, times: float) -> None:
    passage = text(10**6, 300, 3)
    assert answer_cost(passage, passage, price) < 299 / times


def test_copy_with_changes_is_faster_too() -> None:
    passage = text(10**6, 400, 3)
    changed = [-n if n % 20 == 7 else i for n, i in enumerate(passage)]
    assert answer_cost(passage, changed, 0.1) < 400 / 2


def test_price_is_measured_and_one_stalled_pass_changes_nothing() -> None:
    calm, stalled = rich(), rich()
    stalled.learn(8, 8, 500.0)
    calm.learn(8, 8, 1.4)
    ids = list(range(20)) * 2
    assert stalled.draft(ids, 8) == calm.draft(ids, 8) != []


def test_drafts_stop_when_they_turn_out_dear() -> None:
    lookup = Lookup(8, 100, 1.0)
    lookup.learn(0, 0, 1.0)
    for _ in range(5):
        lookup.learn(8, 4, 9.0)
        lookup.learn(0, 0, 1.0)
    assert lookup.draft(list(range(20)) * 2, 8) == []


def test_price_is_looked_at_even_while_everything_holds() -> None:
    """32 passes with drafts, one without; a machine that became slower shows."""
    lookup, ids = rich(), list(range(20)) * 2
    for _ in range(32):
        assert lookup.draft(ids, 8)
        lookup.learn(8, 8, 1.4)
    assert lookup.draft(ids, 8) == []
    lookup.learn(0, 0, 1.0)
    assert lookup.draft(ids, 8)


@pytest.mark.parametrize("load", [0.3, 4.0])
def test_load_that_comes_or_goes_with_the_first_pass_does_not_fool_it_for_long(load: float) -> None:
    """The prompt is read on a machine that is that much slower than behind it."""
    passage = text(10**6, 300, 3)
    assert answer_cost(passage, passage, 0.1, load=load) < 299 / 2
    assert answer_cost(text(10, 300, 1), text(10, 299, 2), 0.3, load=load) < 1.03 * 298


def test_a_full_account_tries_a_draft_that_nothing_speaks_for() -> None:
    lookup = rich()
    for _ in range(30):
        lookup.learn(1, 0, 2.0)
        lookup.learn(0, 0, 1.0)
    for _ in range(300):
        lookup.learn(0, 0, 1.0)
    ids = list(range(20)) * 2
    assert lookup.draft(ids, 8) == []
    for _ in range(2000):
        lookup.learn(0, 0, 1.0)
    assert len(lookup.draft(ids, 8)) == 1


def test_a_clock_that_stands_still_is_no_error() -> None:
    lookup = Lookup(8, 2, 0.0)
    for drafts in (0, 0, 8, 1, 0):
        lookup.learn(drafts, 0, 0.0)
    assert len(lookup.draft([1, 2, 3] * 9, 8)) <= 8
