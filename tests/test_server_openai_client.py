"""The real `openai` client against a real socket: stream and not, async and not, and each of its exceptions."""

import asyncio
from collections.abc import Iterator
from typing import Any, Literal

import pytest

pytest.importorskip("openai", reason="the openai client is not installed")

import openai
from pydantic import BaseModel
from serving import SEEDED, Live, chat_ids, demo, endless, greedy, live, long_demo, solo, wait_until

KEY = "sesame-open"
QUESTIONS = ("hello", "What is 45 + 38?", "你好")


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(key=KEY) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Live) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as found:
        yield found


def asking(question: str) -> Any:
    return [{"role": "user", "content": question}]


def text_of(chunks: Any) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_chat_whole_and_in_a_stream(question: str, client: Any) -> None:
    create = client.chat.completions.create
    whole = create(model="demo", messages=asking(question), temperature=0)
    assert whole.choices[0].message.content == greedy(question)
    assert whole.choices[0].message.role == "assistant"
    assert whole.choices[0].finish_reason == "stop"
    with create(model="demo", messages=asking(question), temperature=0, stream=True) as stream:
        chunks = list(stream)
    assert text_of(chunks) == greedy(question)
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "stop"
    assert chunks[0].choices[0].delta.role == "assistant"
    seeded = create(model="demo", messages=asking(question), **SEEDED)
    assert seeded.choices[0].message.content == solo(question, **SEEDED)


def test_asyncio_asks_many_at_once(server: Live) -> None:
    async def whole(client: Any, question: str) -> str:
        reply = await client.chat.completions.create(model="demo", messages=asking(question), temperature=0)
        return str(reply.choices[0].message.content)

    async def streamed(client: Any, question: str) -> str:
        stream = await client.chat.completions.create(
            model="demo", messages=asking(question), temperature=0, stream=True
        )
        return text_of([chunk async for chunk in stream])

    async def both() -> tuple[list[str], list[str]]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
            return (
                await asyncio.gather(*(whole(client, question) for question in QUESTIONS)),
                await asyncio.gather(*(streamed(client, question) for question in QUESTIONS)),
            )

    expected = [greedy(question) for question in QUESTIONS]
    assert list(asyncio.run(both())) == [expected, expected]


def test_usage_comes_with_the_last_chunk(client: Any) -> None:
    fields = {"model": "demo", "messages": asking("hello"), "temperature": 0}
    usage = client.chat.completions.create(**fields).usage
    assert usage.prompt_tokens == len(chat_ids("hello"))
    with client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True}) as stream:
        chunks = list(stream)
    assert chunks[-1].usage == usage
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)


def test_the_streams_own_helper_gathers_the_answer(client: Any) -> None:
    with client.chat.completions.stream(
        model="demo", messages=asking("hello"), temperature=0, logprobs=True, top_logprobs=2
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done", "logprobs.content.delta"} <= kinds
    assert final.choices[0].message.content == greedy("hello")
    assert len(final.choices[0].logprobs.content) == len(list(demo().generate(chat_ids("hello")))) - 1


class Verdict(BaseModel):
    answer: Literal["yes", "no"]
    tries: Literal[1, 2, 3]


def test_an_answer_is_parsed_into_a_class(client: Any) -> None:
    parsed = client.chat.completions.parse(
        model="demo", messages=asking("hello"), response_format=Verdict, temperature=0
    )
    assert isinstance(parsed.choices[0].message.parsed, Verdict)
    with client.chat.completions.stream(
        model="demo", messages=asking("hello"), response_format=Verdict, temperature=0
    ) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == parsed.choices[0].message.parsed


def test_options_of_an_answer(client: Any) -> None:
    create = client.chat.completions.create
    reply = create(model="demo", messages=asking("hello"), n=2, stop=["I am"], max_completion_tokens=30, **SEEDED)
    for n, choice in enumerate(reply.choices):
        assert choice.message.content == solo("hello", **{**SEEDED, "seed": 7 + n}).partition("I am")[0]
    reply = create(
        model="demo", messages=asking("hello"), temperature=0, response_format={"type": "json_object"}, max_tokens=20
    )
    assert reply.choices[0].message.content.startswith("{")
    reply = create(model="demo", messages=asking("hello"), max_tokens=2, user="me", store=False, metadata={"a": "b"})
    assert reply.choices[0].finish_reason == "length"


def test_texts_are_continued(client: Any) -> None:
    create = client.completions.create
    reply = create(model="demo", prompt=["hello", "My name is"], max_tokens=9, temperature=0, logprobs=1)
    assert len(reply.choices) == 2
    with create(model="demo", prompt="hello", max_tokens=9, temperature=0, stream=True) as stream:
        assert "".join(chunk.choices[0].text for chunk in stream) == reply.choices[0].text
    assert len(reply.choices[0].logprobs.tokens) == len(reply.choices[0].logprobs.token_logprobs)


def test_the_model_is_listed(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").owned_by == "glmcpu"


def test_refusals_are_the_clients_exceptions(client: Any, server: Live) -> None:
    create = client.chat.completions.create
    with pytest.raises(openai.BadRequestError) as bad:
        create(model="demo", messages=asking("hello"), temperature=3)
    assert (bad.value.param, bad.value.code, bad.value.type) == (
        "temperature",
        "invalid_value",
        "invalid_request_error",
    )
    with pytest.raises(openai.BadRequestError) as long:
        create(model="demo", messages=asking("hello " * 600))
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="tools is not supported"):
        create(model="demo", messages=asking("hello"), tools=[{"type": "function", "function": {"name": "f"}}])
    with pytest.raises(openai.NotFoundError) as missing:
        create(model="gpt-4", messages=asking("hello"))
    assert missing.value.code == "model_not_found"
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong") as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()


def test_a_full_server_is_tried_again_by_itself() -> None:
    with live(long_demo(), parallel=1, waiting=0) as busy, busy.connect() as first:
        first.sendall(busy.request(endless(long_demo(), stream=True)))
        wait_until(lambda: busy.running() == 1, "running")
        with openai.OpenAI(base_url=f"{busy.url}/v1", api_key="any", max_retries=0) as client:
            with pytest.raises(openai.RateLimitError) as full:
                client.chat.completions.create(model="demo", messages=asking("hello"))
            assert full.value.response.headers["retry-after"] == "1"
            first.close()
            again = client.with_options(max_retries=20).chat.completions
            reply = again.create(model="demo", messages=asking("hello"), temperature=0)
            assert reply.choices[0].message.content == greedy("hello")


def test_a_failure_in_a_stream_is_an_exception() -> None:
    with live(long_demo()) as ending, openai.OpenAI(base_url=f"{ending.url}/v1", api_key="any") as client:
        stream = client.chat.completions.create(model="demo", **endless(long_demo()), stream=True)
        next(stream)
        ending.stop()
        with pytest.raises(openai.APIError, match="shutting down"):
            list(stream)


def test_closing_a_stream_ends_the_answer() -> None:
    with live(long_demo()) as long, openai.OpenAI(base_url=f"{long.url}/v1", api_key="any") as client:
        with client.chat.completions.create(model="demo", **endless(long_demo()), stream=True) as stream:
            next(stream)
        wait_until(lambda: long.running() == 0, "ending")
