"""Rounds: what fits into a prompt, what is accepted as text, and the file of a conversation."""

import json

import pytest
from fake_model import FakeModel
from hypothesis import given, settings
from hypothesis import strategies as st

from glmcpu import limits
from glmcpu.errors import DataError, UsageError
from glmcpu.rounds import check_text, fit_prompt, read_conversation, write_conversation


def size(model, rounds, preface=()):
    return len(model.tokenizer.encode(model.tokenizer.chat_prompt("now", [*preface, *rounds])))


@given(
    st.lists(st.tuples(st.text("ab", max_size=40), st.text("ab", max_size=40)), max_size=30),
    st.sampled_from([64, 256, 1000, 2048]),
)
@settings(deadline=None)
def test_as_many_rounds_stay_as_fit_and_the_answer_keeps_its_room(rounds, context):
    model = FakeModel(context=context)
    ids, dropped = fit_prompt(model, "now", rounds)
    longest = context - min(256, context // 4)
    assert len(ids) == size(model, rounds[dropped:]) <= longest
    if dropped:
        assert size(model, rounds[dropped - 1 :]) > longest


def test_the_preface_stays_when_all_rounds_go():
    model = FakeModel(context=128)
    ids, dropped = fit_prompt(model, "now", [("x" * 60, "y")] * 3, preface=[("P", "A")])
    assert dropped == 3
    assert len(ids) == size(model, [], [("P", "A")]) <= 96


def test_a_short_answer_needs_less_room():
    model = FakeModel(context=256)
    rounds = [("x" * 150, "y")]
    assert size(model, rounds) > 192
    assert fit_prompt(model, "now", rounds, max_new_tokens=10)[1] == 0
    assert fit_prompt(model, "now", rounds)[1] == 1


def test_max_length_leaves_one_token():
    model = FakeModel()
    prompt_tokens = size(model, [])
    assert len(fit_prompt(model, "now", [], max_length=prompt_tokens + 1)[0]) == prompt_tokens
    with pytest.raises(UsageError, match=f"{prompt_tokens} tokens"):
        fit_prompt(model, "now", [], max_length=prompt_tokens)


def test_text_up_to_the_limit_is_accepted_and_one_byte_more_is_not():
    for length in (limits.INPUT_BYTES - 1, limits.INPUT_BYTES):
        assert len(check_text("x" * length, "question")) == length
    with pytest.raises(UsageError, match="question: 1,048,577 bytes"):
        check_text("x" * (limits.INPUT_BYTES + 1), "question")


@settings(max_examples=30)
@given(st.none() | st.text(st.characters(exclude_categories=["Cs"])), st.lists(st.tuples(st.text(), st.text())))
def test_every_conversation_comes_back_from_its_file(tmp_path_factory, system, rounds):
    path = tmp_path_factory.mktemp("talk") / "talk.json"
    rounds = [(check_text(q, "q"), check_text(a, "a")) for q, a in rounds]
    write_conversation(path, system, rounds)
    assert read_conversation(path) == (system, rounds)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "JSON"),
        ("[]", "no conversation"),
        ('"glmcpu_conversation"', "no conversation"),
        ({"glmcpu_conversation": 2, "system": None, "history": []}, "no conversation"),
        ({"glmcpu_conversation": 1, "system": 3, "history": []}, "system"),
        ({"glmcpu_conversation": 1, "system": None}, "history"),
        ({"glmcpu_conversation": 1, "system": None, "history": {}}, "history"),
        ({"glmcpu_conversation": 1, "system": None, "history": [["q"]]}, r"history\[0\]"),
        ({"glmcpu_conversation": 1, "system": None, "history": [["q", None]]}, r"history\[0\]\[1\]"),
    ],
)
def test_a_file_that_is_no_conversation_is_refused_by_name(tmp_path, content, words):
    path = tmp_path / "talk.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DataError, match=words) as caught:
        read_conversation(path)
    assert str(path) in str(caught.value)
