"""Bodies have one meaning, and what fails inside a route is answered in its shape."""

import asyncio
import logging
import threading
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from serving import Local, error_of
from starlette.requests import ClientDisconnect

from glmcpu.errors import BusyError
from glmcpu.server.fields import TokenizeRequest
from glmcpu.server.routes import LONG_CHARS, StrictRoute, aside
from glmcpu.server.telemetry import Metrics, Telemetry

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def client() -> Local:
    routes = APIRouter(route_class=StrictRoute)

    @routes.post("/echo")
    async def echo(body: TokenizeRequest) -> Any:
        return {"said": body.content}

    @routes.get("/fail/{kind}")
    async def fail(kind: str) -> None:
        raise {"busy": BusyError("full"), "left": ClientDisconnect(), "ours": KeyError("secret")}[kind]

    app = FastAPI()
    app.include_router(routes)
    return Local(Telemetry(app, Metrics(lambda: (0, 0))))


BODIES: dict[str, bytes] = {
    "empty": b"",
    "no JSON": b"hello",
    "array": b"[]",
    "null": b"null",
    "number": b"5",
    "byte order mark": b'\xef\xbb\xbf{"content":"x"}',
    "UTF-16": '{"content":"x"}'.encode("utf-16"),
    "no UTF-8": b'{"content":"\xff"}',
    "over-long UTF-8": b'{"content":"\xc0\xaf"}',
    "garbage behind": b'{"content":"x"}x',
    "two documents": b'{"content":"x"}{"content":"x"}',
    "key twice": b'{"content":"x","content":"y"}',
    "NaN": b'{"content":"x","a":NaN}',
    "Infinity": b'{"content":"x","a":-Infinity}',
    "too large a float": b'{"content":"x","a":1e999}',
    "5000 digits": b'{"content":"x","a":' + b"1" * 5000 + b"}",
    "deep": b'{"content":"x","a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "half a surrogate pair": b'{"content":"\\ud800"}',
    "half a surrogate pair in a key": b'{"content":"x","\\udc00":1}',
    "too many values": b'{"content":"x","a":[' + b"1," * 501_000 + b"1]}",
}


@pytest.mark.parametrize("row", BODIES)
def test_a_body_with_no_one_meaning_is_refused(row: str, client: Local) -> None:
    response = client.post("/echo", content=BODIES[row], headers=JSON)
    assert (response.status_code, error_of(response)["code"]) == (400, "invalid_json")


def test_a_whole_surrogate_pair_is_a_character(client: Local) -> None:
    response = client.post("/echo", content=b'{"content":"\\ud83d\\ude00"}', headers=JSON)
    assert response.json() == {"said": "\U0001f600"}


def test_failures_have_their_shape(client: Local, caplog: pytest.LogCaptureFixture) -> None:
    assert error_of(client.get("/fail/busy"))["code"] == "server_busy"
    assert client.get("/fail/left").status_code == 499
    with caplog.at_level(logging.ERROR, "glmcpu.server"):
        response = client.get("/fail/ours")
    assert (response.status_code, error_of(response)["code"]) == (500, "internal_error")
    assert "secret" not in response.text
    assert response.headers["x-request-id"] in caplog.text  # where the traceback stands
    assert "KeyError: 'secret'" in caplog.text


def test_long_texts_are_worked_on_beside_the_loop() -> None:
    async def threads() -> list[bool]:
        here = threading.get_ident()
        return [await aside(chars, threading.get_ident) == here for chars in (1, LONG_CHARS, LONG_CHARS + 1)]

    assert asyncio.run(threads()) == [True, True, False]
