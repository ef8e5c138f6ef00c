"""The loop from ids to tokens, without drafts: what ends it, what each token says, what it refuses."""

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import golden
import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_tokenizer import ROWS, tiny_tokenizer

from glmcpu.errors import DataError, UsageError
from glmcpu.generate import Token, generate
from glmcpu.models.chatglm import Part
from glmcpu.sampling import Sampler
from glmcpu.tokenizers.prompt import process_response


class Script:
    """A model that says the same ids again and again, and remembers what it was given to read."""

    def __init__(self, says: Sequence[int]) -> None:
        self.says = says
        self.config = SimpleNamespace(eos=tiny_tokenizer().eos, layers=3)
        self.read: list[int] = []
        self.capacity = 0

    def new_cache(self, capacity: int) -> Any:
        self.capacity = capacity
        return SimpleNamespace(length=0)

    def forward(self, parts: Sequence[Part], every: bool = False, after_layer: Any = None) -> NDArray[np.float32]:
        (ids, cache) = parts[0]
        self.read.append(len(ids) - cache.length)
        cache.length = len(ids)
        for n in range(4 if after_layer else 0):
            after_layer(n, None)
        logits = np.zeros((1, ROWS), np.float32)
        logits[0, self.says[(len(self.read) - 1) % len(self.says)]] = 9
        return logits


PROMPT = [7, tiny_tokenizer().gmask, tiny_tokenizer().bos]


def answer(
    model: Any, ids: Sequence[int] = PROMPT, *, text: bool = True, context: int = 64, **options: Any
) -> list[Token]:
    options = {"lookup": False} | options
    return list(generate(model, tiny_tokenizer() if text else None, ids, context=context, **options))


def says(text: str) -> Script:
    """A model that says `text` and the end token."""
    tokenizer = tiny_tokenizer()
    return Script([*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos])


def reasons(tokens: list[Token]) -> list[str | None]:
    return [token.finish_reason for token in tokens]


def small() -> Any:
    return golden.chatglm("tiny-mini", "f32")


def mini(tokens: int = 16, **options: Any) -> list[Token]:
    """An answer of tiny-mini, which has no tokenizer."""
    ids = golden.case("tiny-mini", "gmask")["input_ids"][0]
    return answer(small(), ids, text=False, max_new_tokens=tokens, **options)


CASES = [(checkpoint, case) for checkpoint, cases in golden.FLOAT.items() for case in cases if case != "over_max"]


@pytest.mark.parametrize("lookup", [False, True])
@pytest.mark.parametrize(("checkpoint", "case"), CASES)
def test_greedy_answer_is_the_official_one_token_for_token(checkpoint: str, case: str, lookup: bool) -> None:
    """The official run ignores the end token, ours stops there."""
    arrays, model = golden.case(checkpoint, case), golden.chatglm(checkpoint, "f32")
    official = arrays["greedy_ids"].tolist()
    if model.config.eos in official:
        official = official[: official.index(model.config.eos) + 1]
    options = {"context": 4096, "max_new_tokens": len(official), "lookup": lookup}
    tokens = answer(model, arrays["input_ids"][0], text=False, **options)
    assert [token.id for token in tokens] == official


def test_answer_to_a_prompt_beyond_the_trained_length_is_the_official_one() -> None:
    arrays = golden.case("tiny-small-vocab", "over_max")
    model = golden.chatglm("tiny-small-vocab", "f32")
    tokens = answer(model, arrays["input_ids"][0], text=False, context=4096, max_new_tokens=4)
    assert [token.id for token in tokens] == arrays["greedy_ids"].tolist()


def test_answers_stop_where_the_official_ones_stop() -> None:
    stopping = json.loads((golden.path("tiny-small-vocab") / "golden.json").read_text())["stopping"]
    ids = golden.case("tiny-small-vocab", stopping["prompt"])["input_ids"][0]
    model = golden.chatglm("tiny-small-vocab", "f32")
    long, ended = stopping["max_length_stop"], stopping["eos_stop"]
    tokens = answer(model, ids, text=False, context=long["max_length"])
    assert [token.id for token in tokens] == long["generate_new"]
    assert tokens[-1].finish_reason == "length"
    tokens = answer(model, ids, text=False, context=4096, stop=[ended["eos"]])
    assert [token.id for token in tokens] == ended["generate_new"]
    assert tokens[-1].finish_reason == "stop"


def test_end_token_comes_last_with_reason_stop_and_without_text() -> None:
    tokens = answer(says("hello world"))
    assert tokens[-1].id == tiny_tokenizer().eos
    assert reasons(tokens) == [None] * (len(tokens) - 1) + ["stop"]
    assert "".join(token.text for token in tokens) == "hello world"


def test_stop_id_of_the_caller_ends_the_answer_like_the_end_token() -> None:
    stop = tiny_tokenizer().encode("world", add_special_tokens=False)[-1]
    tokens = answer(says("hello world how are you"), stop=[stop])
    assert tokens[-1].id == stop
    assert tokens[-1].finish_reason == "stop"


@pytest.mark.parametrize(("stop", "text"), [("wor", "hello "), ("lo w", "hel"), ("h", ""), ("界", "hello world")])
def test_text_ends_before_a_stop_string_that_may_cross_tokens(stop: str, text: str) -> None:
    tokens = answer(says("hello world"), stop=[stop])
    assert "".join(token.text for token in tokens) == text
    assert reasons(tokens) == [None] * (len(tokens) - 1) + ["stop"]
    assert (tokens[-1].id == tiny_tokenizer().eos) == (stop == "界")


def test_pieces_are_the_decoded_text_when_joined() -> None:
    text = "hello , world .\n你好😀 end"
    tokens = answer(says(text))
    tokenizer = tiny_tokenizer()
    assert "".join(token.text for token in tokens) == tokenizer.decode([token.id for token in tokens[:-1]])
    assert not any("\ufffd" in token.text for token in tokens)


def test_half_a_character_at_the_end_comes_out_with_the_last_token() -> None:
    bytes_of_it = tiny_tokenizer().encode("😀", add_special_tokens=False)
    tokens = answer(Script(bytes_of_it), max_new_tokens=len(bytes_of_it) - 1)
    assert "".join(token.text for token in tokens[:-1]).strip() == ""
    assert "\ufffd" in tokens[-1].text
    assert tokens[-1].finish_reason == "length"


@pytest.mark.parametrize("n", [1, 2, 7])
def test_max_new_tokens_ends_the_answer_with_reason_length(n: int) -> None:
    tokens = answer(Script([9]), max_new_tokens=n)
    assert reasons(tokens) == [None] * (n - 1) + ["length"]


def test_full_context_ends_the_answer_with_reason_length() -> None:
    model = Script([9])
    tokens = answer(model, context=10, max_new_tokens=512)
    assert len(tokens) == 10 - len(PROMPT)
    assert tokens[-1].finish_reason == "length"
    assert model.capacity == 10


def test_prompt_is_read_once_and_then_each_token_and_the_last_not_at_all() -> None:
    model = Script([9])
    answer(model, max_new_tokens=5)
    assert model.read == [len(PROMPT), 1, 1, 1, 1]
    assert model.capacity == len(PROMPT) + 5


def test_nothing_more_is_computed_when_the_caller_stops_asking() -> None:
    model = Script([9])
    tokens = generate(model, None, PROMPT, context=64)  # type: ignore[arg-type]
    next(tokens)
    tokens.close()  # type: ignore[attr-defined]
    assert model.read == [len(PROMPT)]


def test_ids_of_the_caller_stay_as_they_are() -> None:
    ids = list(PROMPT)
    answer(Script([9]), ids, max_new_tokens=5)
    assert ids == PROMPT


def test_progress_is_reported_for_the_prompt_only() -> None:
    seen: list[tuple[int, int]] = []
    answer(Script([9]), max_new_tokens=3, progress=lambda done, layers: seen.append((done, layers)))
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_without_tokenizer_tokens_have_no_text() -> None:
    assert {token.text for token in mini(4)} == {""}


def test_logprob_is_the_logarithm_of_the_models_own_probability() -> None:
    ids = golden.case("tiny-mini", "gmask")["input_ids"][0].tolist()
    sampler = Sampler(temperature=2, top_k=5, repetition_penalty=1.3, seed=3)
    for token in mini(12, sampler=sampler):
        logits = small().forward([Part(ids, small().new_cache(len(ids)))])[0].astype(np.float64)
        expected = logits[token.id] - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
        assert token.logprob == pytest.approx(expected, abs=1e-4)
        ids.append(token.id)


def test_equal_seeds_give_equal_answers_and_others_give_others() -> None:
    def ids(seed: int) -> list[int]:
        sampler = Sampler(temperature=3, top_k=0, top_p=1, seed=seed)
        return [token.id for token in mini(20, sampler=sampler)]

    assert ids(1) == ids(1)
    assert len({tuple(ids(seed)) for seed in range(5)}) == 5


def test_without_sampler_the_answer_is_greedy() -> None:
    greedy = [token.id for token in mini(sampler=Sampler(temperature=0))]
    assert [token.id for token in mini()] == greedy


def test_answers_drawn_at_the_same_time_do_not_mix() -> None:
    """Two generators of one model, asked in turn."""
    ids = golden.case("tiny-mini", "gmask")["input_ids"][0].tolist()
    other = [8, *ids]
    expected = [[t.id for t in answer(small(), i, text=False, max_new_tokens=9)] for i in (ids, other)]
    pair = [generate(small(), None, i, context=64, max_new_tokens=9) for i in (ids, other)]
    drawn = [[a.id, b.id] for a, b in zip(*pair, strict=True)]
    assert [list(column) for column in zip(*drawn, strict=True)] == expected


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"max_new_tokens": -5}, "max_new_tokens=-5"),
        ({"stop": "end"}, "'end'"),
        ({"stop": 5}, "stop=5"),
        ({"stop": [""]}, "empty"),
    ],
)
def test_wrong_arguments_are_refused_before_the_first_token(options: dict[str, Any], fact: str) -> None:
    with pytest.raises(UsageError, match=fact):
        generate(Script([9]), tiny_tokenizer(), PROMPT, context=64, **options)  # type: ignore[arg-type]


def test_stop_string_without_tokenizer_is_refused() -> None:
    with pytest.raises(UsageError, match="tokenizer"):
        mini(stop=["end"])


@pytest.mark.parametrize("length", [64, 65, 3000])
def test_prompt_that_fills_the_context_is_refused_with_both_numbers(length: int) -> None:
    with pytest.raises(DataError, match=f"{length:,} tokens and the context 64"):
        generate(Script([9]), None, [*[9] * (length - 2), *PROMPT[1:]], context=64)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ids", "fact"), [([999, 301, 304], "999"), ([5, 301], "<sop>"), ([5, 304], "gMASK"), ([], "no ids")]
)
def test_ids_the_model_cannot_read_are_refused_by_number(ids: list[int], fact: str) -> None:
    with pytest.raises(DataError) as error:
        answer(small(), ids, text=False)
    assert fact in str(error.value)


class Alternating:
    """Allows one of two ids by turns, and the end after `length` of them."""

    def __init__(self, first: int, second: int, length: int) -> None:
        self.pair, self.length, self.taken = (first, second), length, list[int]()

    def allowed(self) -> Any:
        ended = len(self.taken) >= self.length
        return np.array([tiny_tokenizer().eos if ended else self.pair[len(self.taken) % 2]])

    def take(self, token: int) -> None:
        self.taken.append(token)


@pytest.mark.parametrize("lookup", [False, True])
def test_constraint_decides_which_ids_follow_with_drafts_too(lookup: bool) -> None:
    model = small()
    prompt = golden.case("tiny-mini", "gmask")["input_ids"][0].tolist()
    first, second = prompt[:2]
    constraint = Alternating(first, second, 9)
    options: dict[str, Any] = {"constraint": constraint, "lookup": lookup, "stop": [tiny_tokenizer().eos]}
    tokens = answer(model, [first, second] * 4 + prompt, text=False, max_new_tokens=30, **options)
    assert [token.id for token in tokens] == [*([first, second] * 5)[:9], tiny_tokenizer().eos]
    assert constraint.taken == [token.id for token in tokens]
    assert any(token.draft is not None for token in tokens) == lookup


def test_text_under_a_constraint_is_not_cleaned_up() -> None:
    class Free(Alternating):
        def allowed(self) -> Any:
            return np.arange(ROWS)

    model = says("a . b ,")
    assert "".join(token.text for token in answer(model)) == "a. b,"
    again = answer(says("a . b ,"), constraint=Free(0, 0, 0))
    assert "".join(token.text for token in again) == "a . b ,"


def test_text_is_tidied_as_asked() -> None:
    tokens = answer(says(" 你好,世界"), post=process_response)
    assert "".join(token.text for token in tokens) == "你好，世界"


def test_likeliest_ids_come_with_each_token() -> None:
    for token in mini(top=3):
        assert len(token.top) == 3
        assert token.top[0] == (token.id, token.logprob)  # greedy
