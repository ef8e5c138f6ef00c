"""An HTTP client over bare asyncio connections: it notes when everything came, and can break off anywhere."""

import asyncio
import json
import socket
import struct
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

HOST = "127.0.0.1"
CHAT = "/v1/chat/completions"


@dataclass
class Outcome:
    """What became of a request; times are time.monotonic()."""

    begin_s: float = field(default_factory=time.monotonic)
    head_s: float = 0.0
    end_s: float = 0.0
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    token_s: list[float] = field(default_factory=list)
    failure: str = ""

    @property
    def seconds(self) -> float:
        """From the connecting to the end."""
        return self.end_s - self.begin_s

    def text(self) -> str:
        """The answer, streamed or not."""
        if not self.headers.get("content-type", "").startswith("text/event-stream"):
            return str(json.loads(self.body)["choices"][0]["message"]["content"])
        found = [json.loads(line[6:]) for line in self.body.decode().splitlines() if line.startswith("data: {")]
        return "".join(each["choices"][0]["delta"].get("content") or "" for each in found)

    def finished(self) -> bool:
        """Whether it is a whole answer."""
        if not self.headers.get("content-type", "").startswith("text/event-stream"):
            return self.status == 200
        return self.body.rstrip().endswith(b"data: [DONE]")


class Connection:
    """One connection; requests may follow each other on it. Bare, so that leaving it takes effect at once."""

    def __init__(self, own: socket.socket) -> None:
        self._socket, self._buffer = own, b""

    @classmethod
    async def open(cls, port: int) -> "Connection":
        own = socket.socket()
        own.setblocking(False)
        await asyncio.get_running_loop().sock_connect(own, (HOST, port))
        return cls(own)

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._socket, data)

    async def read(self, outcome: Outcome) -> AsyncIterator[bytes]:
        """The parts of an answer as they come, whose head goes into `outcome`."""
        head = (await self._until(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        outcome.head_s, outcome.status = time.monotonic(), int(head[0].split()[1])
        outcome.headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
        if "content-length" in outcome.headers:
            outcome.body = await self._exactly(int(outcome.headers["content-length"]))
            yield outcome.body
            return
        while size := int(await self._until(b"\r\n"), 16):
            part = (await self._exactly(size + 2))[:-2]
            outcome.body += part
            if b'"content"' in part and b'"role"' not in part:
                outcome.token_s.append(time.monotonic())
            yield part
        await self._until(b"\r\n")

    def leave(self, *, reset: bool = False) -> None:
        """Closes: with FIN, or with RST."""
        if reset:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    async def _until(self, end: bytes) -> bytes:
        while (place := self._buffer.find(end)) < 0:
            await self._more()
        return self._taken(place + len(end))

    async def _exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            await self._more()
        return self._taken(count)

    async def _more(self) -> None:
        data = await asyncio.get_running_loop().sock_recv(self._socket, 1 << 16)
        if not data:
            raise EOFError
        self._buffer += data

    def _taken(self, count: int) -> bytes:
        found, self._buffer = self._buffer[:count], self._buffer[count:]
        return found


def chat(text: str, tokens: int, *, seed: int = 0, stream: bool = True, eos: int | None = None, **more: Any) -> bytes:
    """A chat request with its head; eos: the end token, which then does not come."""
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": tokens, "seed": seed, "stream": stream}
    if eos is not None:
        body["logit_bias"] = {str(eos): -100}
    return request("POST", CHAT, json.dumps(body | more).encode())


def request(method: str, path: str, body: bytes = b"", kind: str = "application/json") -> bytes:
    """A request with its head."""
    head = f"{method} {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def ask(port: int, data: bytes, *, limit_s: float = 120.0, connection: Connection | None = None) -> Outcome:
    """Sends a request and reads all of its answer; what goes wrong stands in `failure`."""
    outcome, own = Outcome(), connection is None
    try:
        connection = connection or await Connection.open(port)
        await asyncio.wait_for(_exchange(connection, data, outcome), limit_s)
    except (OSError, EOFError, ValueError, asyncio.TimeoutError) as error:
        outcome.failure = type(error).__name__
    finally:
        outcome.end_s = time.monotonic()
        if own and connection:
            connection.leave()
    return outcome


async def _exchange(connection: Connection, data: bytes, outcome: Outcome) -> None:
    await connection.send(data)
    async for _ in connection.read(outcome):
        pass


def percentile(values: list[float], share: float) -> float:
    """The value below which such a share lies; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
