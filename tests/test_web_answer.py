"""An answer on the page: the prompt made of messages, the answer and its figures, and why there is none."""

import asyncio
import json
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import pytest
from scripted import Script, scripted

from glmcpu import BusyError, Engine

pytest.importorskip("gradio", reason="the page needs pip install 'glmcpu[web]'")
answers, rounds = (getattr(import_module("glmcpu.web.answer"), name) for name in ("answers", "rounds"))
ENGLISH = import_module("glmcpu.web.words").ENGLISH

Message = dict[str, Any]
Shown = tuple[list[Message], str]


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine(scripted()[0]) as engine:
        yield engine


@pytest.fixture
def script(engine: Engine) -> Iterator[Script]:
    script: Any = engine.model.language_model
    yield script
    script.let_go()


def message(role: str, text: str, **more: Any) -> Message:
    return {"role": role, "content": [{"type": "text", "text": text}], **more}


def conversation(*texts: str) -> list[Message]:
    return [message("assistant" if n % 2 else "user", text) for n, text in enumerate(texts)]


def shown(
    engine: Callable[[], Engine], question: str, messages: list[Message] | None = None, **options: Any
) -> list[Shown]:
    async def collect() -> list[Shown]:
        return [one async for one in answers(engine, question, messages or [], ENGLISH, **options)]

    return asyncio.run(collect())


def text(one: Shown) -> str:
    return str(one[0][-1]["content"][0]["text"])


def why(one: Shown) -> str:
    return str(one[0][-1]["metadata"]["title"])


# --- the prompt ---


def test_a_conversation_is_pairs_of_question_and_answer() -> None:
    assert rounds(conversation("a", "b", "c", "d")) == [("a", "b"), ("c", "d")]


def test_notes_and_questions_without_an_answer_are_no_rounds() -> None:
    note = message("assistant", "", metadata={"title": "Not now"})
    assert rounds([*conversation("a", "b", "c"), note, *conversation("d", "e"), message("user", "f")]) == [
        ("a", "b"),
        ("d", "e"),
    ]


def test_an_answer_without_a_word_is_no_round() -> None:
    assert rounds(conversation("a", "", "b", "c")) == [("b", "c")]


def test_the_model_reads_the_conversation_in_the_official_form(engine: Engine, script: Script) -> None:
    shown(lambda: engine, "三", conversation("一", "二"))
    assert script.prompts == ["[Round 0]\n问:一\n答:二\n[Round 1]\n问:三\n答:"]


def test_rounds_left_out_are_said(engine: Engine, script: Script) -> None:
    long = conversation(*["word " * 300] * 10)
    figures = shown(lambda: engine, "hello", long)[-1][1]
    assert "oldest 3 rounds were left out" in figures
    assert script.prompts[0].count("[Round") == 3


# --- the answer ---


def test_an_answer_grows_and_its_figures_stand_beside_it(engine: Engine, script: Script) -> None:
    script.answer = "Nice to meet you, 你好,再见!"
    last = shown(lambda: engine, "hello")[-1]
    assert text(last) == "Nice to meet you, 你好，再见！"
    assert "tokens/s" in last[1]
    assert "tokens/s" not in json.dumps(last[0])


def test_the_words_come_one_by_one(engine: Engine, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glmcpu.web.answer.SHOWN_EVERY_S", 0.0)
    script.answer = "one two three"
    grown = [text(one) for one in shown(lambda: engine, "hello")]
    assert grown[0] == "one"
    assert grown[-1] == "one two three"
    assert grown == sorted(grown, key=len)


def test_indented_lines_stay_indented(engine: Engine, script: Script) -> None:
    script.answer = "x\n    y"
    assert text(shown(lambda: engine, "hello")[-1]) == "x\n    y"


def test_the_maximum_length_counts_prompt_and_answer(engine: Engine, script: Script) -> None:
    script.answer = "word " * 500
    assert engine.model.tokenizer is not None
    prompt = len(engine.model.tokenizer.encode("hello"))
    figures = shown(lambda: engine, "hello", max_length=prompt + 7)[-1][1]
    assert "· 7 tokens ·" in figures
    assert "cut at the maximum length" in figures


def test_the_maximum_length_ends_with_the_context(engine: Engine, script: Script) -> None:
    script.answer = "word " * 500
    assert "cut" not in shown(lambda: engine, "hello", max_length=4096)[-1][1]
    engine.model.context = 200
    assert "cut at the maximum length" in shown(lambda: engine, "hello", max_length=4096)[-1][1]


def test_sliders_at_0_take_the_likeliest(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    samplers = []
    submit = engine.submit
    monkeypatch.setattr(engine, "submit", lambda ids, sampler, **more: samplers.append(sampler) or submit(ids, **more))
    for options in ({"temperature": 0.0}, {"top_p": 0.0}, {"temperature": 0.5, "top_p": 0.25}, {}):
        shown(lambda: engine, "hello", **options)
    assert [(s.temperature, s.top_p) for s in samplers] == [(0, 0.7), (0, 0.7), (0.5, 0.25), (0.95, 0.7)]


# --- no answer ---


def test_a_model_that_loads_is_a_note_to_ask_later() -> None:
    def loading() -> Engine:
        raise BusyError("the model is still loading; ask again in a moment")

    (last,) = shown(loading, "hello")
    assert why(last) == "Not now: the model is still loading; ask again in a moment."
    assert rounds([message("user", "hello"), *last[0]]) == []


def test_a_full_engine_is_a_note_to_ask_later(script: Script, engine: Engine) -> None:
    script.hold()
    assert engine.model.tokenizer is not None
    ids = engine.model.tokenizer.encode("hello")
    streams = [engine.submit(ids) for _ in range(engine.places)]
    assert why(shown(lambda: engine, "hello")[-1]).startswith("Not now: ")
    for stream in streams:
        stream.cancel()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max_length": 0}, "maximum length is 0"),
        ({"max_length": 4}, "tokens long"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 2.0}, "top_p"),
    ],
)
def test_what_cannot_be_answered_is_a_note_with_the_reason(
    engine: Engine, options: dict[str, Any], reason: str
) -> None:
    (last,) = shown(lambda: engine, "hello", **options)
    assert why(last).startswith("No answer: ")
    assert reason in why(last)


def test_an_empty_question_is_not_asked(engine: Engine, script: Script) -> None:
    assert why(shown(lambda: engine, " \n")[-1]) == "No answer: the question is empty; type one."
    assert not script.prompts


def test_a_model_without_a_tokenizer_is_a_note(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.model, "tokenizer", None)
    assert "holds no tokenizer" in why(shown(lambda: engine, "hello")[-1])


# --- stopping ---


def test_to_close_an_answer_is_to_cancel_it(script: Script, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glmcpu.web.answer.SHOWN_EVERY_S", 0.0)
    script.answer = "word " * 500
    script.hold()
    script.let("word word word")

    async def leave() -> None:
        growing = answers(lambda: engine, "hello", [], ENGLISH)
        await anext(growing)
        assert engine.state().running == 1
        await growing.aclose()

    asyncio.run(leave())
    script.let_go()
    engine.close(grace_s=60)
    assert engine.state().running == 0
    assert len(script.prompts) == 1
