"""Clients on a real socket that are slow, do not read, or leave: nothing is held for them for long."""

import contextlib
import json
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from serving import CHAT, HELLO, Gate, Live, endless, everything, live, long_demo, until, wait_until

from glmcpu import limits

SOON_S = 0.2


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(long_demo(), parallel=1) as found:
        yield found


def idle(server: Live) -> None:
    """Nothing runs or waits, and nobody is connected."""
    wait_until(lambda: server.running() == 0, "ending")
    wait_until(lambda: server.service.engine.state().waiting == 0, "leaving the queue")
    wait_until(lambda: not server.server.server_state.connections, "closing")
    assert server.alive()


def status(answer: bytes) -> bytes:
    return answer.split(b" ", 2)[1]


# --- slow ---


@pytest.mark.parametrize("sent", ["nothing", "a byte", "half a head"])
def test_a_head_must_come_in_time(sent: str, server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HTTP_HEAD_S", SOON_S)
    data = {"nothing": b"", "a byte": b"G", "half a head": server.head()[:-2]}[sent]
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(20)]
        for client in clients:
            client.sendall(data)
        for client in clients:
            assert status(everything(client)) == b"408"
    idle(server)


def test_a_head_byte_by_byte_must_come_in_time_too(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HTTP_HEAD_S", SOON_S)
    sent = (bytes([byte]) for byte in server.head("GET", "/" + "x" * 1000))
    with server.connect() as client:
        client.settimeout(0.02)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while not answer:
                client.sendall(next(sent))
                with contextlib.suppress(TimeoutError):
                    answer = client.recv(4096)
        assert status(answer) == b"408"
    idle(server)


@pytest.mark.parametrize("kind", ["Content-Length: 100", "Transfer-Encoding: chunked"])
def test_a_body_must_come_in_time(kind: str, server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HTTP_BODY_S", SOON_S)
    answer = server.exchange(server.head("POST", CHAT, "Content-Type: application/json", kind) + b"5\r\n{")
    assert status(answer) == b"408"
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "request_timeout"
    idle(server)


def test_slow_clients_hold_up_nobody(server: Live) -> None:
    with contextlib.ExitStack() as stack:
        for data in (b"", b"GET", server.head("POST", CHAT, "Content-Type: application/json", "Content-Length: 9")):
            for _ in range(30):
                stack.enter_context(server.connect()).sendall(data)
        answer = server.exchange(server.request({"messages": HELLO, "temperature": 0}, CHAT, "Connection: close"))
        assert status(answer) == b"200"
    idle(server)


def test_an_answer_takes_longer_than_any_deadline(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_HEAD_S", "HTTP_BODY_S", "HTTP_STALL_S"):
        monkeypatch.setattr(limits, name, 0.05)
    with server.connect() as client:
        client.sendall(server.request(endless(long_demo(), max_tokens=300, stream=True)))
        assert b"data: [DONE]" in until(client, b"0\r\n\r\n")


def unread(server: Live, data: bytes) -> socket.socket:
    """A client with small buffers on both sides that does not read."""
    server.taken.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", server.port))
    client.sendall(data)
    return client


def test_a_stream_that_is_not_read_is_dropped(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HTTP_STALL_S", SOON_S)
    with unread(server, server.request(endless(long_demo(), stream=True))):
        idle(server)


def test_a_whole_answer_that_is_not_read_is_dropped(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the server has written the last byte of it, and closes."""
    monkeypatch.setattr(limits, "HTTP_STALL_S", SOON_S)
    with unread(server, server.request({"content": "好" * 20_000}, "/tokenize", "Connection: close")):
        idle(server)


# --- leaving ---


def leave(client: socket.socket, how: str) -> None:
    if how == "reset":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if how == "half-close":  # how most clients leave, so it counts as that
        client.shutdown(socket.SHUT_WR)
        everything(client)
    client.close()


@pytest.mark.parametrize("how", ["close", "reset", "half-close"])
@pytest.mark.parametrize("when", ["in the head", "in the body", "in the answer", "in the stream", "at the end"])
def test_leaving_ends_what_was_asked_for(when: str, how: str, server: Live, caplog: pytest.LogCaptureFixture) -> None:
    data = {
        "in the head": server.head()[:-2],
        "in the body": server.request({"messages": HELLO})[:-3],
        "in the answer": server.request(endless(long_demo())),
        "in the stream": server.request(endless(long_demo(), stream=True)),
        "at the end": server.request({"messages": HELLO, "max_tokens": 1, "stream": True}),
    }[when]
    client = server.connect()
    client.sendall(data)
    if when == "in the stream":
        until(client, b'"content":"H')
    if when == "in the answer":
        wait_until(lambda: server.running() == 1, "running")
    if when == "at the end":
        until(client, b"[DONE]")
    leave(client, how)
    idle(server)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_leaving_the_queue_makes_room(server: Live) -> None:
    engine = server.service.engine
    with server.connect() as first:
        first.sendall(server.request(endless(long_demo(), stream=True)))
        until(first, b'"content":"H')
        for stream in (True, False):
            with server.connect() as second:
                second.sendall(server.request(endless(long_demo(), stream=stream)))
                wait_until(lambda: engine.state().waiting == 1, "waiting")
            wait_until(lambda: engine.state().waiting == 0, "leaving the queue")
            assert engine.state().running == 1
    idle(server)


def test_leaving_while_the_prompt_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(long_demo())
    with monkeypatch.context() as patched:
        patched.setattr(long_demo(), "language_model", gate)
        with live(long_demo()) as server:
            gate.open.clear()
            with server.connect() as client:
                client.sendall(server.request(endless(long_demo(), stream=True)))
                assert gate.arrived.wait(60)
            wait_until(lambda: not server.server.server_state.connections, "closing")
            gate.open.set()
            idle(server)


# --- many requests on one connection ---


def test_an_idle_connection_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HTTP_IDLE_S", SOON_S)
    with live() as server, server.connect() as client:
        client.sendall(server.head("GET", "/v1/models"))
        assert everything(client).count(b"HTTP/1.1") == 1  # and then it ends


def read_one(client: socket.socket) -> Any:
    answer = until(client, b"\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    while len(body) < length:
        body += client.recv(65536)
    return json.loads(body)


def test_one_connection_carries_many_requests(server: Live) -> None:
    with server.connect() as client:
        for n in range(300):
            client.sendall(server.head("GET", f"/v1/models/m{n}"))
            assert f"'m{n}'" in read_one(client)["error"]["message"]
    idle(server)


def test_requests_sent_ahead_are_answered_in_order(server: Live) -> None:
    ahead = [server.request({"content": "x" * n}, "/tokenize") for n in range(1, 30)]
    answer = server.exchange(b"".join(ahead) + server.head("GET", "/v1/models", "Connection: close"))
    bodies = [json.loads(part.partition(b"\r\n\r\n")[2]) for part in answer.split(b"HTTP/1.1 200 OK")[1:]]
    assert len(bodies) == 30
    ids = [len(body["tokens"]) for body in bodies[:-1]]
    assert ids == sorted(ids)
    assert bodies[-1]["object"] == "list"


def test_leaving_ends_an_answer_also_when_more_was_sent_ahead(server: Live) -> None:
    with server.connect() as client:
        client.sendall(server.request(endless(long_demo(), stream=True)) + server.head() + server.head())
        until(client, b'"content":"H')
    idle(server)


def test_a_body_sent_ahead_must_come_in_time_too(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HTTP_BODY_S", SOON_S)
    answer = server.exchange(server.request({"messages": HELLO, "max_tokens": 1}) + server.request({})[:-1])
    assert answer.count(b"HTTP/1.1 200") == 1
    assert b"HTTP/1.1 408" in answer


def test_garbage_behind_a_request_is_refused_and_the_request_answered(server: Live) -> None:
    answer = server.exchange(server.request({"messages": HELLO, "max_tokens": 1}) + b"\0garbage\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"HTTP/1.1 400" in answer
    idle(server)


# --- many connections ---


def test_more_connections_than_may_be_are_told_and_far_more_are_dropped(
    server: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HTTP_CONNECTIONS", 3)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(4)]
        wait_until(lambda: len(server.server.server_state.connections) == 4, "connecting")
        clients[-1].sendall(server.head("GET", "/v1/models", "Connection: close"))
        assert status(everything(clients[-1])) == b"503"
        for _ in range(12):
            clients.append(stack.enter_context(server.connect()))
        assert everything(clients[-1]) == b""
    monkeypatch.undo()
    idle(server)
