"""LangChain's OpenAI chat model against a real socket: invoke and stream, async and not, structured answers."""

import asyncio
from collections.abc import Iterator
from typing import Any, Literal

import pytest

pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")

import langchain_openai
import openai
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from pydantic import BaseModel
from serving import Live, chat_ids, greedy, live, solo

from glmcpu.chat import SYSTEM_ANSWER

QUESTIONS = ["hello", "What is 45 + 38?", "你好"]


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live() as found:
        yield found


@pytest.fixture(scope="module")
def chat(server: Live) -> Any:
    return langchain_openai.ChatOpenAI(
        base_url=f"{server.url}/v1", api_key="any", model="demo", temperature=0, max_retries=0
    )


def test_invoke_and_stream(chat: Any) -> None:
    for question in QUESTIONS:
        reply = chat.invoke(question)
        assert reply.content == greedy(question)
        assert reply.response_metadata["finish_reason"] == "stop"
        assert reply.usage_metadata["input_tokens"] == len(chat_ids(question))
        pieces = list(chat.stream(question))
        assert len(pieces) > 3
        assert "".join(piece.content for piece in pieces) == greedy(question)
    assert [reply.content for reply in chat.batch(QUESTIONS)] == [greedy(question) for question in QUESTIONS]


def test_asyncio(chat: Any) -> None:
    async def both(question: str) -> tuple[str, str]:
        whole = await chat.ainvoke(question)
        return whole.content, "".join([piece.content async for piece in chat.astream(question)])

    async def all_of_them() -> list[tuple[str, str]]:
        return await asyncio.gather(*map(both, QUESTIONS))

    assert asyncio.run(all_of_them()) == [(greedy(question),) * 2 for question in QUESTIONS]


def test_usage_of_a_stream(chat: Any) -> None:
    pieces = list(chat.stream("hello", stream_usage=True))
    counted = [piece.usage_metadata for piece in pieces if piece.usage_metadata]
    assert counted[-1]["input_tokens"] == len(chat_ids("hello"))


def test_a_conversation(chat: Any) -> None:
    said = [
        SystemMessage("You are Bob."),
        HumanMessage("My name is Ann."),
        AIMessage("Nice to meet you, Ann!"),
        HumanMessage("What is my name?"),
    ]
    history = [("You are Bob.", SYSTEM_ANSWER), ("My name is Ann.", "Nice to meet you, Ann!")]
    assert chat.invoke(said).content == solo("What is my name?", history, temperature=0.0)


def test_options_are_passed_on(server: Live, chat: Any) -> None:
    assert chat.bind(stop=["I am"]).invoke("hello").content == greedy("hello").partition("I am")[0]
    seeded = langchain_openai.ChatOpenAI(
        base_url=f"{server.url}/v1", api_key="any", model="demo", temperature=1.3, top_p=0.95, seed=7, max_tokens=40
    )
    expected = solo("hello", temperature=1.3, top_p=0.95, seed=7, max_new_tokens=40)
    assert seeded.invoke("hello").content == expected
    shown = chat.bind(logprobs=True, top_logprobs=2).invoke("hello").response_metadata["logprobs"]["content"]
    assert "".join(token["token"] for token in shown).strip() == greedy("hello")


class Verdict(BaseModel):
    """What is thought of it."""

    answer: Literal["yes", "no"]
    tries: Literal[1, 2, 3]


def test_structured_answers(chat: Any) -> None:
    assert isinstance(chat.with_structured_output(Verdict, method="json_schema").invoke("hello"), Verdict)


def test_what_is_not_supported_is_an_error(chat: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="tools is not supported"):
        chat.bind_tools([Verdict]).invoke("hello")
