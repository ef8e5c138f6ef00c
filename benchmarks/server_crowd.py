"""Hundreds of clients in one loop over bare sockets: what is measured should be the server's time, not theirs."""

import selectors
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from server_client import HOST

_TICK_S = 0.02


@dataclass
class Visit:
    """One request on a connection of its own. Times are time.monotonic(); 0 as long as it has not come to that.

    begin_s   when it began to connect        first_s, end_s   when the first and the last byte of the answer came
    """

    request: bytes
    after_s: float = 0.0
    begin_s: float = 0.0
    first_s: float = 0.0
    end_s: float = 0.0
    answer: bytearray = field(default_factory=bytearray)
    failure: str = ""
    own: socket.socket | None = None

    @property
    def status(self) -> int:
        """0 when there was no answer."""
        return int(self.answer[9:12]) if len(self.answer) > 12 else 0

    @property
    def seconds(self) -> float:
        """From connecting to the end."""
        return self.end_s - self.begin_s

    def complete(self) -> bool:
        """Whether all of the answer is there."""
        head, found, body = self.answer.partition(b"\r\n\r\n")
        if not found:
            return False
        _, found, length = head.lower().partition(b"content-length:")
        return len(body) >= int(length.split()[0]) if found else body.endswith(b"0\r\n\r\n")


def visit(port: int, visits: Sequence[Visit], limit_s: float, each_tick: Callable[[], None] = lambda: None) -> None:
    """Makes all visits, each `after_s` behind the beginning, and fills in what became of them."""
    begin_s = time.monotonic()
    selector = selectors.DefaultSelector()
    coming = deque(sorted(visits, key=lambda each: each.after_s))
    here: set[int] = set()
    while (coming or here) and time.monotonic() < begin_s + limit_s:
        while coming and time.monotonic() >= begin_s + coming[0].after_s:
            _connect(port, coming.popleft(), selector, here)
        wait_s = begin_s + coming[0].after_s - time.monotonic() if coming else _TICK_S
        for key, _ in selector.select(max(0.0, min(_TICK_S, wait_s))):
            if _serve(key.data, selector):
                _leave(key.data, selector, here)
        each_tick()
    for key in list(selector.get_map().values()):
        key.data.failure = "hung"
        _leave(key.data, selector, here)
    selector.close()


def _connect(port: int, one: Visit, selector: selectors.BaseSelector, here: set[int]) -> None:
    one.begin_s, one.own = time.monotonic(), socket.socket()
    one.own.setblocking(False)
    one.own.connect_ex((HOST, port))
    selector.register(one.own, selectors.EVENT_WRITE, one)
    here.add(id(one))


def _serve(one: Visit, selector: selectors.BaseSelector) -> bool:
    """Sends or reads; whether that was all."""
    assert one.own
    try:
        if selector.get_key(one.own).events == selectors.EVENT_WRITE:
            one.own.send(one.request)
            selector.modify(one.own, selectors.EVENT_READ, one)
            return False
        data = one.own.recv(1 << 16)
    except OSError as error:
        one.failure = type(error).__name__
        return True
    one.answer += data
    one.first_s = one.first_s or time.monotonic()
    if not data and not one.complete():
        one.failure = "cut off"
    return not data or one.complete()


def _leave(one: Visit, selector: selectors.BaseSelector, here: set[int]) -> None:
    assert one.own
    one.end_s = time.monotonic()
    selector.unregister(one.own)
    one.own.close()
    here.discard(id(one))
