"""Answers on their way: in order, several at once, ended however their client goes."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from serving import HELLO, SEEDED, Gate, chat_ids, demo, endless, long_demo, started, wait_until
from starlette.requests import ClientDisconnect, Request

from glmcpu import Engine, Sampler, Token
from glmcpu.server import choices
from glmcpu.server.openai_api import router
from glmcpu.server.problems import Problem
from glmcpu.server.service import Service
from glmcpu.server.telemetry import Record

LATE = {"sampler": Sampler(temperature=50, seed=3, top_k=0, top_p=1), "max_new_tokens": 10_000}


@pytest.fixture
def service() -> Iterator[Service]:
    found = started(lambda: Engine(long_demo()))
    yield found
    found.close()


def idle(service: Service) -> None:
    wait_until(lambda: service.engine.state().running + service.engine.state().waiting == 0, "leaving")


def ask(service: Service, *questions: str, **options: Any) -> Any:
    return service.submit([(chat_ids(question), {"max_new_tokens": 40, **options}) for question in questions])  # type: ignore[typeddict-item]


def test_every_choice_has_its_tokens_in_order(service: Service) -> None:
    questions = ("hello", "My name is Bob.", "What is 45 + 38?")
    found = asyncio.run(choices.all_tokens(ask(service, *questions)))
    assert found == [list(demo().generate(chat_ids(question), max_new_tokens=40)) for question in questions]
    assert asyncio.run(choices.all_tokens(ask(service, "hello"))) == found[:1]


@pytest.mark.parametrize("count", [1, 3])
def test_leaving_ends_all_of_them(count: int, service: Service) -> None:
    async def first(streams: Any) -> tuple[int, Token]:
        tokens = choices.tokens_of(streams)
        found = await anext(tokens)
        await tokens.aclose()  # type: ignore[attr-defined]
        return found

    streams = ask(service, *["hello"] * count, **LATE)
    assert isinstance(asyncio.run(first(streams))[1], Token)
    assert all(stream.cancelled for stream in streams)
    idle(service)


@pytest.mark.parametrize("count", [1, 3])
def test_an_answer_the_server_cuts_off_is_a_problem(count: int, service: Service) -> None:
    async def cut(streams: Any) -> None:
        asyncio.get_running_loop().call_soon(lambda: [stream.cancel() for stream in streams])
        await choices.all_tokens(streams)

    with pytest.raises(Problem) as caught:
        asyncio.run(cut(ask(service, *["hello"] * count, **LATE)))
    assert (caught.value.status_code, caught.value.code) == (503, "shutting_down")


@pytest.mark.parametrize("count", [1, 3])
def test_a_failure_of_one_is_raised_and_ends_the_others(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(long_demo())
    with monkeypatch.context() as patched:
        patched.setattr(long_demo(), "language_model", gate)
        service = started(lambda: Engine(long_demo()))
    gate.error = ZeroDivisionError("injected")
    streams = ask(service, *["hello"] * count, **LATE)
    with pytest.raises(ZeroDivisionError):
        asyncio.run(choices.all_tokens(streams))
    assert all(stream.cancelled for stream in streams)
    gate.error = None
    assert asyncio.run(choices.all_tokens(ask(service, "hello")))
    service.close()


def request(left: asyncio.Event) -> Request:
    async def receive() -> dict[str, Any]:
        await left.wait()
        return {"type": "http.disconnect"}

    return Request({"type": "http"}, receive)


def test_work_for_a_client_that_leaves_is_ended_when_one_hears_of_it(service: Service) -> None:
    async def leave() -> bool:
        left = asyncio.Event()
        streams = ask(service, "hello", **LATE)
        asyncio.get_running_loop().call_soon(left.set)
        with pytest.raises(ClientDisconnect):
            await choices.unless_left(request(left), choices.all_tokens(streams))
        return bool(streams[0].cancelled)

    assert asyncio.run(leave())
    idle(service)


def test_work_for_a_client_that_stays_has_its_result_or_its_failure() -> None:
    async def work(fails: bool) -> int:
        if fails:
            raise ZeroDivisionError
        return 5

    async def stay(fails: bool) -> int:
        return await choices.unless_left(request(asyncio.Event()), work(fails))

    assert asyncio.run(stay(False)) == 5
    with pytest.raises(ZeroDivisionError):
        asyncio.run(stay(True))


def test_a_client_that_left_before_the_first_event_leaves_nothing_running(service: Service) -> None:
    """Its response is cancelled before the events are asked for, so they never begin and never end."""
    from fastapi import FastAPI

    app, record = FastAPI(), Record()
    app.include_router(router(service))
    body = endless(long_demo(), stream=True)

    async def gone() -> None:
        import json

        messages = [{"type": "http.request", "body": json.dumps(body).encode()}]

        async def receive() -> dict[str, Any]:
            return messages.pop() if messages else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            pass

        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "query_string": b"", "headers": []}
        scope |= {"glmcpu.record": record, "asgi": {"spec_version": "2.3"}, "root_path": ""}
        scope["headers"] = [(b"content-type", b"application/json")]
        await app(scope, receive, send)

    asyncio.run(gone())
    idle(service)
    assert record.figures["left"] is True


def test_prompts_are_counted_once_and_answers_each(service: Service) -> None:
    streams = ask(service, "hello", "hello", "My name is Bob.", "My name is Bob.", max_new_tokens=3)
    asyncio.run(choices.all_tokens(streams))
    prompts = len(chat_ids("hello")) + len(chat_ids("My name is Bob."))
    assert choices.usage(streams, each=2) == {
        "prompt_tokens": prompts,
        "completion_tokens": 12,
        "total_tokens": prompts + 12,
    }


def test_times_and_counts_of_an_answer_agree(service: Service) -> None:
    (stream,) = ask(service, "hello", sampler=Sampler(**SEEDED))  # type: ignore[arg-type]
    (tokens,) = asyncio.run(choices.all_tokens([stream]))
    found = choices.timings(stream)
    assert (found["prompt_n"], found["predicted_n"]) == (len(chat_ids("hello")), len(tokens))
    assert found["prompt_ms"] > 0
    assert found["predicted_per_second"] == pytest.approx(1000 * (len(tokens) - 1) / found["predicted_ms"], rel=0.01)
    record = Record()
    choices.note(record, [stream])
    assert record.figures["completion_tokens"] == len(tokens)
    assert record.figures["first_ms"] >= record.figures["queue_ms"] >= 0
    assert HELLO
