"""The corpus of the embedded model: what is held out stays out, and every answer can be told right from wrong."""

import itertools
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import demo_path  # noqa: F401
import pytest

from demo import arithmetic, blocks, corpus, memory, slots
from demo.example import LANGUAGES, Example, Pick, table

SOME = 20_000


def test_the_same_seed_gives_the_same_examples_and_another_gives_others() -> None:
    one, two, other = (list(itertools.islice(corpus.examples(seed), 200)) for seed in (1, 1, 2))
    assert one == two
    assert one != other


def test_examples_do_not_depend_on_the_order_of_sets() -> None:
    code = "import itertools; from demo import corpus; print(*itertools.islice(corpus.examples(1), 500))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONIOENCODING": "utf-8"},
            cwd=Path(__file__).parents[1],
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_no_held_out_question_is_in_training() -> None:
    held_out = {(e.prompt, e.response) for e in corpus.held_out(7, 50)}
    trained = {(e.prompt, e.response) for e in itertools.islice(corpus.examples(1), SOME)}
    assert not held_out & trained


def test_held_out_names_and_things_are_never_said_in_training() -> None:
    names = {row[1] for row in table("names.txt") if row[0] in ("entest", "zhtest")}
    pick = Pick(random.Random(3))
    said = {memory.value(pick, kind, language) for kind in memory.KINDS for language in LANGUAGES for _ in range(500)}
    assert not said & names
    tests = {word for row in table("things.txt") if len(row) > 3 for word in row[1:3]}
    assert not said & (tests - {word for row in table("things.txt") if len(row) == 3 for word in row[1:3]})


@pytest.mark.parametrize(("kind", "result"), [("+", int.__add__), ("-", int.__sub__)])
def test_sums_in_tests_and_in_training_share_no_pair_and_end_in_every_digit(
    kind: str, result: Callable[[int, int], int]
) -> None:
    trained, tested = (
        [arithmetic._pair(Pick(source, test), kind) for _ in range(3000)]
        for test, source in ((False, random.Random(1)), (True, random.Random(1)))
    )
    assert not set(trained) & set(tested)
    for drawn in (trained, tested):
        ends = Counter(result(a, b) % 10 for a, b in drawn)
        assert len(ends) == 10
        assert min(ends.values()) > 0.02 * len(drawn)


@pytest.mark.parametrize(
    ("a", "kind", "b", "answer"),
    [
        (3, "+", 4, "3 + 4 = 7"),
        (47, "+", 8, "47 + 8 = 55"),
        (88, "+", 28, "88 + 28 = 108 + 8 = 116"),
        (62, "-", 14, "62 - 14 = 52 - 4 = 48"),
        (62, "-", 20, "62 - 20 = 42"),
        (9, "*", 8, "9 x 8 = 72"),
    ],
)
def test_sums_of_tens_and_units_take_two_steps(a: int, kind: str, b: int, answer: str) -> None:
    assert arithmetic._worked(a, kind, b) == answer


def test_wordings_divide_into_those_of_training_and_those_of_tests() -> None:
    pattern = ("(Please |)(say|repeat|copy)( this| it| that| them|)( again| twice| now|)",)
    trained, tested = ({Pick(random.Random(n), test).wording(pattern) for n in range(400)} for test in (False, True))
    assert tested
    assert not trained & tested
    assert not any(set("()|") & set(text) for text in trained | tested)


@pytest.mark.parametrize("slot", slots.SLOTS, ids="-".join)
def test_everything_that_can_be_told_has_held_out_wordings(slot: tuple[str, str]) -> None:
    for test in (False, True):
        pick = Pick(random.Random(1), test)
        assert pick.wording(slots.SLOTS[slot].tell).count("{}") == 1
        assert "{}" not in pick.wording(slots.SLOTS[slot].ask)


def test_right_answers_are_right_and_others_are_not() -> None:
    examples = list(corpus.held_out(7, 20))
    assert {e.topic for e in examples} == set(corpus.TOPICS)
    for example in examples:
        assert example.is_right(example.response), example
        assert not example.is_right("I do not know."), example


def test_an_exact_answer_may_lack_its_full_stop_only() -> None:
    example = Example("copy", "en", "Say: Hello there.", "Hello there.", exact=True)
    assert example.is_right(" Hello there ")
    assert not example.is_right("Hello here.")
    assert not example.is_right("Hello there. Hello there.")


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("topic", blocks.TOPICS)
def test_every_block_has_wordings_held_out_ones_an_answer_and_keys_in_it(topic: str, language: str) -> None:
    found = blocks.blocks(topic, language)
    assert len(found) > 10
    for block in found:
        assert len(block.wordings) >= 12, block.wordings[0]
        assert len(block.held_out) >= 2, block.wordings[0]
        assert not set(block.wordings) & set(block.held_out)
        assert block.keys
        assert all(key.lower() in block.answer.lower() for key in block.keys), block.answer


def test_the_lexicon_is_one_to_one() -> None:
    rows = table("lexicon.txt")
    assert len(rows) > 300
    for column in (0, 1):
        assert len({row[column] for row in rows}) == len(rows)
