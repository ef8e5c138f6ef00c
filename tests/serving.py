"""A server for the tests: in this process without a socket, in a thread with one, or as a process of its own."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest

from glmcpu import Engine, Model, Sampler, store

pytest.importorskip("fastapi", reason="the extra server is not installed")
pytest.importorskip("fastapi_offline", reason="the extra server is not installed")
pytest.importorskip("llguidance", reason="the extra server is not installed")
pytest.importorskip("prometheus_client", reason="the extra server is not installed")
pytest.importorskip("uvicorn", reason="the extra server is not installed")
pytest.importorskip("httpx", reason="httpx is not installed")

import httpx

from glmcpu.server import run
from glmcpu.server.app import Settings, build
from glmcpu.server.guard import App, Rules
from glmcpu.server.service import Service

URL = "http://127.0.0.1:8000"
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
LONG = 20_000
PATIENCE_S = 60.0  # how long a test waits for what comes at once on a machine that has nothing else to do
HELLO = [{"role": "user", "content": "hello"}]


@cache
def demo() -> Model:
    """The embedded model."""
    return Model.load(store.embedded())


@cache
def long_demo() -> Model:
    """The same with room for answers that no test waits for the end of."""
    return Model.load(store.embedded(), context=LONG)


def endless(model: Model, **fields: Any) -> dict[str, Any]:
    """A chat request whose answer never ends by itself."""
    return {"messages": HELLO, "logit_bias": {str(model.config.eos): -100}, "temperature": 0, **fields}


def chat_ids(question: str, history: Any = (), model: Model | None = None) -> list[int]:
    tokenizer = (model or demo()).tokenizer
    assert tokenizer is not None
    return tokenizer.encode(tokenizer.chat_prompt(question, history))


def solo(question: str, history: Any = (), **options: Any) -> str:
    """What chat() says, which a server must say too."""
    return demo().chat(question, history, **options)[0]


def greedy(question: str) -> str:
    return solo(question, temperature=0.0)


SEEDED = {"temperature": 1.3, "top_p": 0.95, "seed": 7}
SEEDED_SAMPLER = Sampler(**SEEDED)  # type: ignore[arg-type]


def wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not holds():
        if time.monotonic() > deadline_s:
            pytest.fail(f"{what}: not within {PATIENCE_S:.0f} s")
        time.sleep(0.002)


def started(load: Callable[[], Engine], name: str = "demo") -> Service:
    """A service whose model has been loaded, or has failed to."""
    service = Service(name, load)
    service.start()
    wait_until(lambda: not service.loading, "loading")
    return service


class Gate:
    """A model's forward that waits while the gate is shut, and fails with `error` if there is one."""

    def __init__(self, model: Model) -> None:
        self._inner = model.language_model
        self.open, self.arrived = threading.Event(), threading.Event()
        self.open.set()
        self.error: Exception | None = None

    def forward(self, *arguments: Any, **options: Any) -> Any:
        self.arrived.set()
        self.open.wait(PATIENCE_S)
        if self.error:
            raise self.error
        return self._inner.forward(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class Local:
    """Asks an application in this process; an answer has arrived as a whole when a method returns."""

    def __init__(self, app: App, **headers: str) -> None:
        self.app, self.headers = app, headers

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url=URL, headers=self.headers) as client:
                return await client.request(method, path, **options)

        return asyncio.run(ask())

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, fields: Any = None, **options: Any) -> httpx.Response:
        """`fields` as a JSON body."""
        if fields is not None:
            options["json"] = fields
        return self.request("POST", path, **options)


@contextlib.contextmanager
def local(model: Model | None = None, settings: Settings | None = None, **options: Any) -> Iterator[Local]:
    """A server without a socket; `options` are the engine's."""
    service = started(lambda: Engine(model or demo(), **options))
    try:
        yield Local(build(service, settings or Settings()))
    finally:
        service.close()


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error of a refusal, whose shape is checked."""
    body = response.json()
    assert set(body) - {"status"} == {"error"}, body
    assert body.get("status", response.status_code) == response.status_code
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert response.headers["content-type"] == "application/json"
    return error


def events(text: str) -> list[Any]:
    """The data of server-sent events, [DONE] as text."""
    lines = [block.removeprefix("data: ") for block in text.split("\n\n")[:-1]]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def working(service: Service) -> bool:
    """Whether a thread loads the model or runs the engine."""
    return service.loading or (service._engine is not None and not service._engine.state().failure)


class Live:
    """A server on a socket, in a thread."""

    def __init__(self, service: Service, settings: Settings, grace_s: float) -> None:
        self.service, self.ready = service, threading.Event()
        self.taken = run.take_port("127.0.0.1", 0)
        self.url, self.port = run.address_of(self.taken), self.taken.getsockname()[1]
        self.server = run._Server(service, settings, grace_s, self.ready.set)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.taken]}, daemon=True)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)

    def exchange(self, data: bytes) -> bytes:
        """All that the server says to `data` until it closes the connection."""
        with self.connect() as client:
            with contextlib.suppress(ConnectionError):  # it may close before it has read all
                client.sendall(data)
            return everything(client)

    def head(self, method: str = "POST", path: str = CHAT, *lines: str) -> bytes:
        return "\r\n".join([f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{self.port}", *lines, "", ""]).encode()

    def request(self, fields: Any, path: str = CHAT, *lines: str) -> bytes:
        """A whole request."""
        body = json.dumps(fields).encode()
        kind, length = "Content-Type: application/json", f"Content-Length: {len(body)}"
        return self.head("POST", path, kind, length, *lines) + body

    def running(self) -> int:
        return int(self.service.health()[1]["running"])

    def alive(self) -> bool:
        return self.exchange(self.head("GET", "/health", "Connection: close")).startswith(b"HTTP/1.1 200")

    def stop(self) -> None:
        """What a first SIGTERM does; a second one would end this process."""
        self.server._end(self.server._grace_s)
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()


@contextlib.contextmanager
def live(model: Model | None = None, *, key: str = "", grace_s: float = 0.0, **options: Any) -> Iterator[Live]:
    """A server on a socket, ready; `options` are the engine's."""
    rules = Rules(key)
    server = Live(Service("demo", lambda: Engine(model or demo(), **options)), Settings(rules), grace_s)
    server.thread.start()
    try:
        assert server.ready.wait(PATIENCE_S)
        yield server
    finally:
        server.stop()


def everything(client: socket.socket) -> bytes:
    """What comes until the other side closes."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while more := client.recv(1 << 16):
            data += more
    return data


def until(client: socket.socket, word: bytes) -> bytes:
    """What comes until `word` has."""
    data = b""
    while word not in data:
        more = client.recv(1 << 16)
        assert more, f"closed before {word!r} came: {data[-300:]!r}"
        data += more
    return data


class Process:
    """`python -m glmcpu serve`; what it writes on stderr is gathered."""

    def __init__(self, *arguments: str, code: str = "", **environment: str) -> None:
        how = ["-c", code] if code else ["-m", "glmcpu"]
        self.child = subprocess.Popen(
            [sys.executable, *how, "serve", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self.lines: list[str] = []

    def wait_for(self, word: str) -> str:
        """The first line with this word."""
        assert self.child.stderr is not None
        for line in self.child.stderr:
            self.lines.append(line.rstrip("\n"))
            if word in line:
                return line.rstrip("\n")
        pytest.fail(f"{word!r} never came: {self.lines}")

    @property
    def url(self) -> str:
        return self.wait_for("listening on ").split("listening on ")[1].split(",")[0]

    def ended(self) -> tuple[int, str]:
        """(exit code, the rest of stderr)."""
        out, err = self.child.communicate(timeout=PATIENCE_S)
        assert out == ""
        self.lines += err.splitlines()
        return self.child.returncode, err

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        if self.child.poll() is None:
            self.child.kill()
        self.child.communicate(timeout=PATIENCE_S)
