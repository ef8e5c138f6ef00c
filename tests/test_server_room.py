"""Requests that find no place are refused by their heads, and those let in do not hold up the refusals."""

import asyncio
from typing import Any, cast

import pytest

pytest.importorskip("fastapi")

from glmcpu.errors import BusyError
from glmcpu.server.guard import App
from glmcpu.server.problems import as_problems
from glmcpu.server.room import ANSWERS, Room
from glmcpu.server.service import Service
from glmcpu.server.telemetry import Record


class _Places:
    """A service with so many places; one that is let in takes its place when the app runs."""

    def __init__(self, places: int) -> None:
        self.places, self.events = places, list[str]()

    def check_room(self, coming: int) -> None:
        with as_problems():
            if self.places <= coming:
                raise BusyError("all places are taken")

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        self.places -= 1
        self.events.append("in")

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.events.append("refused")


def _room(service: _Places) -> Room:
    return Room(cast(App, service.app), cast(Service, service))


def _scope(path: str = "/v1/chat/completions", method: str = "POST") -> dict[str, Any]:
    return {"type": "http", "method": method, "path": path, "headers": [], "glmcpu.record": Record()}


async def _nothing() -> Any:
    raise AssertionError("the body was read")


async def _body() -> Any:
    return {"type": "http.request", "body": b"{}", "more_body": False}


@pytest.mark.parametrize("path", sorted(ANSWERS))
def test_without_a_place_a_request_is_refused_unread(path: str) -> None:
    service, sent, scope = _Places(0), list[Any](), _scope(path)

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(_room(service)(scope, _nothing, send))
    assert sent[0]["status"] == 429
    assert (b"retry-after", b"1") in sent[0]["headers"]
    assert b"connection" not in dict(sent[0]["headers"])
    assert b"all places are taken" in sent[1]["body"]
    assert (b'"status":429' in sent[1]["body"]) == (path == "/")
    assert scope["glmcpu.record"].figures == {"error": "server_busy"}
    assert service.events == []


@pytest.mark.parametrize(("path", "method"), [("/health", "GET"), ("/", "GET"), ("/tokenize", "POST")])
def test_what_asks_for_no_answer_needs_no_place(path: str, method: str) -> None:
    service = _Places(0)
    asyncio.run(_room(service)(_scope(path, method), _nothing, cast(Any, _nothing)))
    assert service.events == ["in"]


def test_of_a_burst_the_refusals_come_first_and_just_as_many_are_let_in_as_there_are_places() -> None:
    service = _Places(3)

    async def burst() -> None:
        room = _room(service)
        await asyncio.gather(*(room(_scope(), _body, service.send) for _ in range(10)))

    asyncio.run(burst())
    assert service.events == ["refused"] * 7 + ["in"] * 3


def test_those_that_ask_a_few_turns_later_are_refused_before_anyone_is_let_in() -> None:
    service = _Places(2)

    async def waves() -> None:
        room, asked = _room(service), list[Any]()
        for _ in range(5):
            asked += [asyncio.create_task(room(_scope(), _body, service.send)) for _ in range(2)]
            for _ in range(4):  # between taking a connection and having read what it asks
                await asyncio.sleep(0)
        await asyncio.gather(*asked)

    asyncio.run(waves())
    assert service.events == ["refused"] * 8 + ["in"] * 2


def test_requests_without_end_cannot_keep_out_the_one_before_them() -> None:
    service = _Places(1)

    async def send(message: Any) -> None:
        pass

    async def crowd() -> None:
        room = _room(service)
        first = asyncio.create_task(room(_scope(), _body, send))
        while not first.done():
            await room(_scope(), _body, send)

    asyncio.run(asyncio.wait_for(crowd(), 10))
    assert service.events == ["in"]


def test_one_that_leaves_while_it_waits_to_be_let_in_keeps_no_place() -> None:
    service = _Places(2)

    async def leave() -> None:
        room = _room(service)
        first, second = (asyncio.create_task(room(_scope(), _body, cast(Any, _nothing))) for _ in range(2))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        await room(_scope(), _body, cast(Any, _nothing))

    asyncio.run(leave())
    assert service.events == ["in", "in"]


def test_one_that_sends_its_body_slowly_keeps_no_place_and_the_app_gets_all_of_it() -> None:
    service, got = _Places(1), list[Any]()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await service.app(scope, receive, send)
        got.append([await receive() for _ in range(3)])

    async def dawdle() -> None:
        parts: asyncio.Queue[Any] = asyncio.Queue()
        room = Room(cast(App, app), cast(Service, service))
        slow = asyncio.create_task(room(_scope(), parts.get, cast(Any, _nothing)))
        await asyncio.sleep(0)
        parts.put_nowait({"type": "http.request", "body": b"{", "more_body": True})
        await _room(service)(_scope(), _body, cast(Any, _nothing))
        assert service.events == ["in"]
        service.places += 1
        parts.put_nowait({"type": "http.request", "body": b"}", "more_body": False})
        parts.put_nowait({"type": "http.disconnect"})
        await slow

    asyncio.run(dawdle())
    assert [message.get("body") for message in got[0]] == [b"{", b"}", None]


def test_a_place_that_was_taken_while_the_body_came_is_not_given_twice() -> None:
    service, sent = _Places(1), list[Any]()

    async def send(message: Any) -> None:
        sent.append(message)

    async def overtaken() -> Any:
        service.places = 0
        return await _body()

    asyncio.run(_room(service)(_scope(), overtaken, send))
    assert sent[0]["status"] == 429
    assert service.events == []
