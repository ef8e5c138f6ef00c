"""From a port to the last answer, in a thread: who may bind what, and how a server ends."""

import contextlib
import json
import signal
import socket
import sys
import threading
from typing import Any

import pytest
import uvicorn
from serving import (
    HELLO,
    Live,
    endless,
    everything,
    greedy,
    live,
    long_demo,
    until,
    wait_until,
    working,
)

from glmcpu import DataError, Engine, MachineError, UsageError
from glmcpu.server import run
from glmcpu.server.app import Settings
from glmcpu.server.service import Service


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.7", "example.com"])  # noqa: S104
def test_beyond_this_machine_a_key_is_required(host: str) -> None:
    with pytest.raises(UsageError, match="GLMCPU_API_KEY"):
        run.check_address(host, "", ())
    run.check_address(host, "sesame", ())


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.3.2.1"])
def test_on_this_machine_it_is_not(host: str) -> None:
    run.check_address(host, "", ())


@pytest.mark.parametrize("key", ["schlüssel", "two words", "tab\t", "line\n", "密"])
def test_a_key_that_no_header_can_carry_is_refused(key: str) -> None:
    with pytest.raises(UsageError, match="API key") as caught:
        run.check_address("127.0.0.1", key, ())
    assert key not in str(caught.value)


@pytest.mark.parametrize("origin", ["*", "example.com", "https://", "https://example.com/", "ftp://x", "null", ""])
def test_origins_look_like_origins(origin: str) -> None:
    with pytest.raises(UsageError, match="allow-origin"):
        run.check_address("127.0.0.1", "", (origin,))


def test_every_page_is_allowed_with_a_key_only() -> None:
    run.check_address("127.0.0.1", "sesame", ("*", "https://example.com:8443"))


@pytest.mark.parametrize(
    "host", ["256.1.1.1", "no-such-host.invalid", "203.0.113.7", "x" * 70, ".", "a..b", "::banana"]
)
def test_an_address_that_cannot_be_had_is_one_line(host: str) -> None:
    with pytest.raises(MachineError, match=r"--host|--port"):
        run.take_port(host, 0)


def test_a_port_that_is_taken_is_said_and_free_again_at_once() -> None:
    with run.take_port("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(MachineError, match=f"127.0.0.1:{port} cannot be taken"):
            run.take_port("127.0.0.1", port)
        with socket.create_connection(("127.0.0.1", port)):
            pass
    run.take_port("127.0.0.1", port).close()


def test_addresses_of_both_kinds_are_urls() -> None:
    with run.take_port("127.0.0.1", 0) as taken:
        assert run.address_of(taken) == f"http://127.0.0.1:{taken.getsockname()[1]}"
    with contextlib.suppress(MachineError), run.take_port("::1", 0) as taken:  # no IPv6 here
        assert run.address_of(taken) == f"http://[::1]:{taken.getsockname()[1]}"


def test_a_model_that_does_not_load_ends_the_server_with_its_error() -> None:
    def load() -> Engine:
        raise DataError("model.safetensors: is empty")

    taken = run.take_port("127.0.0.1", 0)
    with pytest.raises(DataError, match="is empty"):
        run.serve(Service("x", load), Settings(), taken, ready=pytest.fail)


def stopping(server: Live) -> threading.Thread:
    thread = threading.Thread(target=server.stop)
    thread.start()
    return thread


def refused(server: Live) -> bool:
    try:
        server.connect().close()
    except ConnectionError:
        return True
    return False


def stream_of(data: bytes) -> list[Any]:
    return [json.loads(line[6:]) for line in data.split(b"\n\n") if line.startswith(b"data: {")]


@pytest.mark.parametrize("stream", [False, True])
def test_answers_under_way_are_finished_within_the_grace_time(stream: bool) -> None:
    with live(long_demo(), parallel=1, grace_s=60) as server, server.connect() as first, server.connect() as second:
        first.sendall(server.request(endless(long_demo(), stream=True, max_tokens=400)))
        data = until(first, b'"content":"H')
        second.sendall(server.request({"messages": HELLO, "temperature": 0, "stream": stream}))
        wait_until(lambda: server.service.engine.state().waiting == 1, "waiting")
        thread = stopping(server)
        wait_until(lambda: refused(server), "closing the port")
        data += everything(first)
        assert b"data: [DONE]" in data
        said = everything(second)
        if stream:
            chunks = stream_of(said.replace(b"\r\n", b"\n\n"))
            text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        else:
            text = json.loads(said.partition(b"\r\n\r\n")[2])["choices"][0]["message"]["content"]
        assert text == greedy("hello")
        thread.join()
    assert not working(server.service)


@pytest.mark.parametrize("stream", [False, True])
def test_what_takes_longer_is_cut_off_and_told(stream: bool) -> None:
    with live(long_demo(), grace_s=0.1) as server, server.connect() as client:
        client.sendall(server.request(endless(long_demo(), stream=stream)))
        wait_until(lambda: server.running() == 1, "running")
        if stream:
            until(client, b'"content":"H')
        server.stop()
        said = everything(client)
        assert b'"shutting_down"' in said
        assert b"[DONE]" not in said
        assert said.startswith(b"HTTP/1.1 503") or stream
    assert not working(server.service)


def test_idle_and_half_sent_connections_do_not_hold_up_the_end() -> None:
    with live(grace_s=60) as server, server.connect() as idle, server.connect() as half:
        half.sendall(server.head()[:-2])
        idle.sendall(server.head("GET", "/health"))
        until(idle, b"}")
        server.stop()
        assert everything(idle) == everything(half) == b""


def test_requests_while_it_ends_are_refused() -> None:
    with live(long_demo(), grace_s=60) as server, server.connect() as first, server.connect() as second:
        first.sendall(server.request(endless(long_demo(), stream=True)))
        until(first, b'"content":"H')
        whole = server.request({"messages": HELLO})
        second.sendall(whole[:-1])
        wait_until(lambda: len(server.server.server_state.tasks) == 2, "reading")
        thread = stopping(server)
        wait_until(lambda: refused(server), "closing the port")
        second.sendall(whole[-1:])
        assert b'"shutting_down"' in everything(second)
        first.close()
        thread.join()


def test_signals_are_given_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    server = Live(Service("x", lambda: pytest.fail("loads")), Settings(), 0.0)
    with server.server.capture_signals():
        assert signal.getsignal(signal.SIGTERM) == server.server.handle_exit
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    server.taken.close()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_a_signal_before_the_loop_runs_ends_the_server_and_raises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    uvicorn_runs = uvicorn.Server.run

    def signalled(self: uvicorn.Server, sockets: list[socket.socket] | None = None) -> None:
        signal.raise_signal(signal.SIGTERM)
        uvicorn_runs(self, sockets)

    monkeypatch.setattr(uvicorn.Server, "run", signalled)
    told = list[str]()
    service = Service("demo", lambda: pytest.fail("loaded"))
    monkeypatch.setattr(service, "start", lambda: None)
    before = signal.signal(signal.SIGTERM, lambda *_: told.append("signal"))
    try:
        run.serve(service, Settings(), run.take_port("127.0.0.1", 0), ready=lambda: told.append("ready"))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert service.closing
    assert not told
