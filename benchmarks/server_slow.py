"""Hundreds of connections that send a byte now and then: are they ended in time, and does anybody else notice them?"""

import asyncio
import contextlib
import multiprocessing
import selectors
import socket
import statistics
import time
from multiprocessing.connection import Connection as Pipe
from typing import Any

from server_client import HOST, ask, chat
from server_process import Server

from glmcpu import limits

_EVERY_S, _MEASURED_S, _SLACK_S, _TOKENS = 3.0, 8.0, 5.0, 48
_HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * 1000
_BODY_HEAD = b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
_DEADLINES = {"head": limits.HTTP_HEAD_S, "body": float(limits.HTTP_BODY_S)}


def run(model: str, eos: int, count: int, rounds: int) -> dict[str, Any]:
    """Measures and prints."""
    ratios, ended = list[float](), list[tuple[str, float, int]]()
    with Server(model) as server:
        asyncio.run(_normal(server.port, eos, 2.0))
        for _ in range(rounds):
            alone = asyncio.run(_normal(server.port, eos, _MEASURED_S))
            here, there = multiprocessing.Pipe()
            slow = multiprocessing.get_context("spawn").Process(target=crawl, args=(server.port, count, there))
            slow.start()
            here.recv()
            beside = asyncio.run(_normal(server.port, eos, _MEASURED_S))
            ended += here.recv()
            slow.join()
            ratios.append(statistics.median(beside) / statistics.median(alone))
            print(
                f"{count} slow ones: {1000 * statistics.median(alone):.1f} ms for {_TOKENS} tokens without them, "
                f"{1000 * statistics.median(beside):.1f} ms with them"
            )
        used = server.used()
    late = {}
    for kind, deadline_s in _DEADLINES.items():
        times = [seconds - deadline_s for which, seconds, _ in ended if which == kind]
        late[kind] = max(times)
        print(
            f"{len(times)} slow in the {kind}: ended {min(times):+.2f} to {max(times):+.2f} s from {deadline_s:.0f} s"
        )
    answered = sum(status == 408 for _, _, status in ended)
    ratio = statistics.median(ratios)
    print(f"{answered} of {len(ended)} were told 408; others took {ratio:.3f} times as long; then {used}")
    return {"connections": len(ended), "told_408": answered, "late_s": late, "ratio": ratio, "ratios": ratios}


async def _normal(port: int, eos: int, seconds: float) -> list[float]:
    """Seconds that answers took to a client that asks again and again."""
    found, end_s = list[float](), time.monotonic() + seconds
    while time.monotonic() < end_s:
        outcome = await ask(port, chat("hello", _TOKENS, seed=len(found), eos=eos))
        if not outcome.finished():
            raise RuntimeError(f"a client beside the slow ones got {outcome.status} {outcome.failure}")
        found.append(outcome.seconds)
    return found


def crawl(port: int, count: int, tell: Pipe) -> None:
    """In a process of its own: opens so many, tells when they are there, and then how each ended."""
    selector, ended = selectors.DefaultSelector(), list[tuple[str, float, int]]()
    for n in range(count):
        kind = "head" if n % 2 else "body"
        own = socket.create_connection((HOST, port))
        if kind == "body":
            own.sendall(_BODY_HEAD)
        selector.register(own, selectors.EVENT_READ, [kind, time.monotonic(), 0, _EVERY_S * n / count])
    tell.send(None)
    while selector.get_map():
        for key, _ in selector.select(0.05):
            kind, begin_s, status, _ = key.data
            data = _received(key.fileobj)
            key.data[2] = status or (int(data[9:12]) if data else 0)
            if not data:
                ended.append((kind, time.monotonic() - begin_s, key.data[2]))
                selector.unregister(key.fileobj)
        for key in list(selector.get_map().values()):
            kind, begin_s, _, next_s = key.data
            since_s = time.monotonic() - begin_s
            if since_s > _DEADLINES[kind] + _SLACK_S:
                ended.append((kind, since_s, 0))
                selector.unregister(key.fileobj)
            elif since_s >= next_s and not key.data[2]:
                key.data[3] += _EVERY_S
                place = int(next_s / _EVERY_S)
                _send(key.fileobj, _HEAD[place : place + 1] if kind == "head" else b" ")
    tell.send(ended)


def _received(own: Any) -> bytes:
    try:
        data: bytes = own.recv(1 << 16)
    except OSError:
        return b""
    return data


def _send(own: Any, data: bytes) -> None:
    with contextlib.suppress(OSError):  # ended by the server; the next read tells
        own.send(data)
