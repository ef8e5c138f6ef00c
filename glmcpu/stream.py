"""The tokens of one answer on their way from the engine's thread to whoever waits, in a thread or in asyncio."""

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator

from glmcpu.generate import Answer, Token

Item = Token | BaseException | None  # None is the end of an answer


class Stream:
    """The tokens of one answer as they come, once: iterate over it in a thread, or with `async for` in asyncio.

    Raises what went wrong with the answer. A stream that was cancelled just ends; leaving the loop early cancels it.

    asked_s, began_s, first_s, last_s   time.monotonic() when it was asked for, when the engine began to read its
                                        prompt, and when its first and its newest token came; 0 as long as it has not
    """

    def __init__(self, answer: Answer, need_bytes: int, leave: Callable[["Stream"], None]) -> None:
        """`Engine.submit` makes one."""
        self.answer, self.need_bytes = answer, need_bytes
        self.cancelled = self.ended = False
        self.asked_s, self.began_s, self.first_s, self.last_s = time.monotonic(), 0.0, 0.0, 0.0
        self._leave = leave
        self._arrived: deque[Item] = deque()
        self._change = threading.Condition()
        self._wake: Callable[[], object] = lambda: None

    def cancel(self) -> None:
        """The answer is no longer wanted: it ends with the step that runs, or the layer of the prompt."""
        self.cancelled = True
        self._leave(self)

    def put(self, *items: Item) -> None:
        """The engine's end: tokens, and last an error or None."""
        if isinstance(items[0], Token):
            self.last_s = time.monotonic()
            self.first_s = self.first_s or self.last_s
        with self._change:
            self._arrived.extend(items)
            self.ended = not isinstance(items[-1], Token)
            self._change.notify_all()
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits any more
                self._wake()

    def __iter__(self) -> Iterator[Token]:
        try:
            while True:
                with self._change:
                    self._change.wait_for(lambda: self._arrived)
                if (token := self._next()) is None:
                    return
                yield token
        finally:
            if not self.ended:
                self.cancel()

    async def __aiter__(self) -> AsyncIterator[Token]:
        loop, came = asyncio.get_running_loop(), asyncio.Event()
        with self._change:
            self._wake = lambda: loop.call_soon_threadsafe(came.set)
        try:
            while True:
                while not self._arrived:
                    came.clear()
                    if not self._arrived:
                        await came.wait()
                if (token := self._next()) is None:
                    return
                yield token
        finally:
            if not self.ended:
                self.cancel()

    def _next(self) -> Token | None:
        """The next token; the end stays, so that iterating again ends at once."""
        item = self._arrived[0]
        if isinstance(item, BaseException):
            raise item
        if item is not None:
            self._arrived.popleft()
        return item
