"""Whether there is room for one more answer: asked when a request's head is there, and again when all of it is.

A burst of a thousand requests then costs little more than a thousand heads, and the refusals do not wait until those
that are let in have been understood.
"""

import asyncio
import time

from glmcpu.server.guard import App, Message, Receive, Scope, Send
from glmcpu.server.problems import Problem
from glmcpu.server.service import Service
from glmcpu.server.telemetry import record_of

ANSWERS = frozenset({"/", "/v1/chat/completions", "/v1/completions"})
_TURNS = 6  # of the event loop, from taking a connection to having read what it asks
_PATIENCE_S = 0.1


class Room:
    """ASGI: refuses what could not be answered now, and lets in the others one at a time.

    A refusal leaves the connection open, and the body is read and dropped: who is still sending would miss the answer.
    """

    def __init__(self, app: App, service: Service) -> None:
        self._app, self._service = app, service
        self._door, self._coming, self._asked = asyncio.Lock(), 0, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app, read = self._app, receive
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in ANSWERS:
            self._asked += 1
            try:
                self._service.check_room(self._coming)
                read = await _whole(receive)  # one that dawdles over its body keeps no place meanwhile
                self._service.check_room(self._coming)
                await self._enter()
            except Problem as problem:
                record_of(scope).figures["error"] = problem.code
                app = problem.response(legacy=scope["path"] == "/")
        await app(scope, read, send)

    async def _enter(self) -> None:
        """Waits for its turn, and first until nobody new asks: most of a burst only have to be told no."""
        self._coming += 1
        end_s = time.monotonic() + _PATIENCE_S
        try:
            async with self._door:
                heard = -1
                while heard != self._asked and time.monotonic() < end_s:
                    heard = self._asked
                    for _ in range(_TURNS):
                        await asyncio.sleep(0)
        finally:
            self._coming -= 1


async def _whole(receive: Receive) -> Receive:
    """Waits for all of the body; gives what says it again."""
    messages = [await receive()]
    while messages[-1].get("more_body"):
        messages.append(await receive())
    coming = iter(messages)

    async def again() -> Message:
        return next(coming, None) or await receive()

    return again
