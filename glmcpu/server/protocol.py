"""uvicorn's HTTP/1.1 with deadlines, so that clients which send or read slowly, or not at all, hold nothing for long.

    connected .. head complete    10 s, else 408        answer not read for 60 s   connection dropped
    head .. body complete         30 s, else 408        idle between requests      uvicorn's keep-alive time

A dropped connection is a client that left: its answers are cancelled as for any other, and at once. The application
notices only some turns of the event loop later, in which the engine would go on.
"""

import asyncio
import json
import sys
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from glmcpu import limits
from glmcpu.server.guard import head_too_large
from glmcpu.server.problems import Problem
from glmcpu.server.telemetry import Record


class BoundedProtocol(H11Protocol):
    """One connection."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._phase: Any = None
        self._deadline: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > 4 * limits.HTTP_CONNECTIONS:  # far fewer get an answer, from the guard
            transport.abort()
            return
        # Whatever the system does not take at once counts as unread, also behind the last byte of an answer.
        transport.set_write_buffer_limits(high=0)
        self._watch()

    def eof_received(self) -> None:
        super().eof_received()
        self._leave()

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        self._unwatch()
        if self._stall:
            self._stall.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._unwatch()  # between requests uvicorn's keep-alive time counts
        if self.conn.their_state is h11.SEND_BODY:  # a request that was sent along with the one before
            self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall = self.loop.call_later(limits.HTTP_STALL_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall:
            self._stall.cancel()
            self._stall = None

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP; uvicorn calls this while h11's error is being handled, which knows whether it was size."""
        status = getattr(sys.exc_info()[1], "error_status_hint", 400)
        if status == 431:
            self._refuse(head_too_large())
        else:
            self._refuse(Problem(400, "this is not valid HTTP/1.1", "invalid_http"))

    def _leave(self) -> None:
        """Tells the request under way, if any, that nobody waits for it any more."""
        record: Record | None = cast(Any, self.scope or {}).get("glmcpu.record")
        if record and not self.cycle.response_complete:
            record.leave()

    def _watch(self) -> None:
        """Sets the deadline of the phase that the client is in, once for each phase."""
        theirs = self.conn.their_state
        phase = theirs if theirs in (h11.IDLE, h11.SEND_BODY) else None
        if phase is self._phase or self.transport.is_closing():
            return
        self._unwatch()
        self._phase = phase
        if phase is not None:
            seconds = limits.HTTP_HEAD_S if phase is h11.IDLE else limits.HTTP_BODY_S
            self._deadline = self.loop.call_later(seconds, self._late)

    def _unwatch(self) -> None:
        self._phase = None
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None

    def _late(self) -> None:
        what = "head" if self._phase is h11.IDLE else "body"
        self._refuse(Problem(408, f"the {what} of the request did not come in time", "request_timeout"))

    def _refuse(self, problem: Problem) -> None:
        """Answers without the app, where no answer has begun, and closes."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(problem.body()).encode()
            head = f"HTTP/1.1 {problem.status_code} \r\nconnection: close\r\ncontent-type: application/json\r\n"
            self.transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        self.transport.close()
