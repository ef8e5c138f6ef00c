"""What is made for a client ends as soon as its connection does, whatever the application is waiting for."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

pytest.importorskip("uvicorn")

import uvicorn
from starlette.requests import ClientDisconnect
from uvicorn.server import ServerState

from glmcpu.generate import Token
from glmcpu.server import choices
from glmcpu.server.problems import Problem
from glmcpu.server.protocol import BoundedProtocol
from glmcpu.server.telemetry import Record
from glmcpu.stream import Stream

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class _Stream:
    """A stream that was cut off after one token."""

    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True

    async def __aiter__(self) -> AsyncIterator[Token]:
        yield Token(1, "a", 0.0)


class _App:
    """Answers when it is told to, and never asks whether the client is still there."""

    def __init__(self) -> None:
        self.record = Record(streams=[cast(Stream, _Stream())])
        self.asked, self.answer = asyncio.Event(), asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        scope["glmcpu.record"] = self.record
        self.asked.set()
        await self.answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


@contextlib.asynccontextmanager
async def _serving(app: _App) -> AsyncIterator[socket.socket]:
    """A client that has sent a request."""
    config, state = uvicorn.Config(cast(Any, app), log_config=None, lifespan="off"), ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: BoundedProtocol(config, state, {}), "127.0.0.1", 0)
    with socket.create_connection(server.sockets[0].getsockname()) as client:
        client.sendall(GET)
        await app.asked.wait()
        yield client
    server.close()


async def _until(condition: Any) -> None:
    for _ in range(20_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise TimeoutError


@pytest.mark.parametrize("reset", [False, True])
def test_a_connection_that_ends_cancels_its_streams(reset: bool) -> None:
    async def leave() -> None:
        app = _App()
        async with _serving(app) as client:
            if reset:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            await _until(lambda: app.record.left)
        assert app.record.streams[0].cancelled
        app.answer.set()

    asyncio.run(leave())


def test_one_that_ends_after_the_answer_has_not_left() -> None:
    async def answered() -> None:
        app = _App()
        async with _serving(app) as client:
            app.answer.set()
            client.setblocking(False)
            assert (await asyncio.get_running_loop().sock_recv(client, 100)).startswith(b"HTTP/1.1 200")
        await asyncio.sleep(0.01)
        assert not app.record.left

    asyncio.run(answered())


@pytest.mark.parametrize("count", [1, 2])
def test_an_answer_cut_off_is_the_clients_doing_or_the_servers(count: int) -> None:
    streams, record = [cast(Stream, _Stream()) for _ in range(count)], Record()
    with pytest.raises(Problem, match="shutting down"):
        asyncio.run(choices.all_tokens(streams, record))
    record.left = True
    with pytest.raises(ClientDisconnect):
        asyncio.run(choices.all_tokens(streams, record))
