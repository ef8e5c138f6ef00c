"""Many requests, one model: answers that run go through the weights together, and others join and leave between steps.

    submit -> waiting -> prompt read -> running: one id of each in every pass -> done
                         layer by layer; between layers the running answers go on

One thread, the engine's, runs the model; whoever asks gets a `Stream` and waits for tokens in a thread or in asyncio. A
request is admitted in order of arrival, when a place is free and its cache has room within the budget. A prompt cannot
be read in pieces, since its tokens see each other; so the engine pauses it between layers, and the running answers
wait no longer than `pause_s`, one layer and one step. An answer is the same to the bit as it is alone.
"""

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from glmcpu import memory
from glmcpu.backends import Floats
from glmcpu.cache import KVCache
from glmcpu.errors import BusyError, MachineError, UsageError, printable
from glmcpu.generate import DRAFTS, Answer, Options, Token, advance, begin
from glmcpu.lookup import Lookup
from glmcpu.model import Model
from glmcpu.models import Part
from glmcpu.stream import Item, Stream

if TYPE_CHECKING:
    from typing_extensions import Unpack

PARALLEL, WAITING, PAUSE_S = 8, 64, 0.25


@dataclass(frozen=True)
class State:
    """How busy an engine is: answers that run, requests that wait, and why it cannot go on, if so.

    `quiet_s` is how long nothing has moved though there is work: a layer of a prompt, a token of the others.
    """

    running: int
    waiting: int
    failure: str = ""
    quiet_s: float = 0.0


@dataclass
class _Run:
    """An answer with its cache, and what guesses its next ids when it is alone."""

    stream: Stream
    cache: KVCache
    lookup: Lookup

    def part(self) -> Part:
        """What the next pass reads of it; drafts that did not hold are forgotten."""
        self.cache.length = len(self.stream.answer.ids) - 1
        return Part(self.stream.answer.ids, self.cache)


class _CancelledError(Exception):
    """Leaves a forward whose result nobody wants."""


class Engine:
    """Runs the requests of many on one model. Close it, or use it as a context manager."""

    def __init__(
        self,
        model: Model,
        *,
        parallel: int = PARALLEL,
        waiting: int = WAITING,
        pause_s: float = PAUSE_S,
        cache_bytes: int | None = None,
    ) -> None:
        """parallel: answers at once; waiting: requests that may wait for a place; pause_s: see above.

        cache_bytes: what all caches may take together; None: as much as `parallel` full ones, or nine tenths of what
        is available. Raises UsageError for numbers out of range.
        """
        for name, value, least in (("parallel", parallel, 1), ("waiting", waiting, 0)):
            if not isinstance(value, int) or value < least:
                raise UsageError(f"{name}={printable(value)}: a whole number from {least} on is needed")
        self.model, self.parallel, self.places, self.pause_s = model, parallel, parallel + waiting, pause_s
        self.cache_bytes = _budget(model, parallel) if cache_bytes is None else cache_bytes
        self._model = model.language_model
        self._waiting: deque[Stream] = deque()
        self._running: list[_Run] = []
        self._starting: Stream | None = None
        self._stepped_s = self._moved_s = time.monotonic()
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._serve, name="glmcpu engine", daemon=True)
        self._thread.start()

    def submit(self, ids: Sequence[int], **options: "Unpack[Options]") -> Stream:
        """Continues `ids` as `Model.generate` does with these options, beside other requests.

        Raises UsageError and DataError as that does, MachineError when the cache would never fit, and BusyError when
        all places are taken. What the model cannot read is an error of the stream.
        """
        model = self.model
        answer = begin(model.config.eos, model.tokenizer, ids, context=model.context, **options)
        need_bytes = model.cache_bytes(answer.limit)
        if need_bytes > self.cache_bytes:
            raise MachineError(
                f"{answer.limit:,} tokens need {memory.megabytes(need_bytes)} of cache and there are "
                f"{memory.megabytes(self.cache_bytes)}; ask for fewer tokens"
            )
        stream = Stream(answer, need_bytes, self._leave)
        with self._changed:
            self._check_room()
            self._waiting.append(stream)
            self._changed.notify_all()
        return stream

    def check_room(self, coming: int = 0) -> None:
        """Raises the BusyError that `submit` would raise when so many requests come first."""
        with self._changed:
            self._check_room(coming)

    def state(self) -> State:
        """How busy it is."""
        with self._changed:
            failure = "" if self._thread.is_alive() else "the engine has ended"
            used, waiting = self._used(), len(self._waiting)
            return State(used, waiting, failure, time.monotonic() - self._moved_s if used or waiting else 0.0)

    def close(self, grace_s: float = 0.0) -> None:
        """Takes no more requests, waits so long for those there are, and ends what is left of them."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._waiting and not self._used(), grace_s)
            left = self._all()
        for stream in left:
            stream.cancel()
        self._thread.join()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_room(self, coming: int = 0) -> None:
        if self._closing:
            raise BusyError("the engine is shutting down; ask again when it is back")
        used, ahead = self._used(), len(self._waiting) + coming
        if used + ahead >= self.places:
            raise BusyError(f"{used} answers run and {ahead} requests wait, as many as may; ask again later")

    def _used(self) -> int:
        """Answers that run, and the one whose prompt is read."""
        return len(self._running) + (self._starting is not None)

    def _all(self) -> list[Stream]:
        starting = [self._starting] if self._starting else []
        return [*self._waiting, *starting, *(run.stream for run in self._running)]

    def _leave(self, stream: Stream) -> None:
        """A cancelled request waits no longer; one that runs is found by the next step."""
        with self._changed:
            if stream in self._waiting:
                self._waiting.remove(stream)
                stream.put(None)

    # --- the engine's thread ---

    def _serve(self) -> None:
        try:
            while self._has_work():
                while stream := self._admitted():
                    self._start(stream)
                self._step()
        finally:
            with self._changed:
                self._closing = True
                left = self._all()
            for stream in left:  # none, unless the lines above have an error
                stream.put(MachineError("the engine has ended; start it again"))

    def _has_work(self) -> bool:
        """Waits for requests; false when it is to end and there are none."""
        with self._changed:
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._waiting or self._running or self._closing)
            self._moved_s = time.monotonic()
            return bool(self._waiting or self._running)

    def _admitted(self) -> Stream | None:
        """The next request, when there is a place and memory for it."""
        with self._changed:
            if not self._waiting or len(self._running) >= self.parallel:
                return None
            taken = sum(run.stream.need_bytes for run in self._running)
            if taken + self._waiting[0].need_bytes > self.cache_bytes:
                return None
            self._starting = self._waiting.popleft()
            return self._starting

    def _start(self, stream: Stream) -> None:
        """Reads a prompt and draws the first token; the running answers go on meanwhile."""
        answer, begin_s = stream.answer, time.monotonic()

        stream.began_s = begin_s

        def pause(n: int, x: object) -> None:
            self._moved_s = time.monotonic()
            if stream.cancelled:
                raise _CancelledError
            # Since the last step, not since this prompt was begun: several short ones may be read in a row.
            if self._running and time.monotonic() - self._stepped_s >= self.pause_s:
                self._step()

        items: list[Item]
        run = None
        try:
            cache = self._model.new_cache(answer.limit)
            scores = self._model.forward([Part(answer.ids, cache)], after_layer=pause)
            items = _drawn(answer, scores[0])
            drafts = DRAFTS if self.model.drafts else 0
            run = _Run(stream, cache, Lookup(drafts, len(answer.ids), time.monotonic() - begin_s))
        except _CancelledError:
            items = [None]
        except Exception as error:  # the failure of this request; the thread serves the others
            items = [error]
        with self._changed:
            if run and isinstance(items[-1], Token):
                self._running.append(run)
            self._starting = None
        stream.put(*items)

    def _step(self) -> None:
        """A token of every running answer, in one pass; of a single one several, where its text repeats itself."""
        said: list[list[Item]]
        with self._changed:
            cancelled = [run for run in self._running if run.stream.cancelled]
            running = self._running = [run for run in self._running if not run.stream.cancelled]
        for run in cancelled:
            run.stream.put(None)
        try:
            if len(running) == 1:
                run = running[0]
                said = [_ended(list(advance(self._model, run.stream.answer, run.cache, run.lookup)))]
            elif running:
                rows = self._model.forward([run.part() for run in running])
                said = [_drawn(run.stream.answer, logits) for run, logits in zip(running, rows, strict=True)]
            else:
                said = []
        except Exception as error:
            said = [[error] for _ in running]
        with self._changed:  # first the places are free, then it is said
            self._running = [run for run, items in zip(running, said, strict=True) if isinstance(items[-1], Token)]
        for run, items in zip(running, said, strict=True):
            run.stream.put(*items)
        self._stepped_s = self._moved_s = time.monotonic()


def _drawn(answer: Answer, logits: Floats) -> list[Item]:
    """The next token, and None behind the last. What fails is the failure of this answer alone."""
    try:
        return _ended([answer.take(logits)])
    except Exception as error:
        return [error]


def _ended(tokens: list[Token]) -> list[Item]:
    return [*tokens, None] if tokens[-1].finish_reason else [*tokens]


def _budget(model: Model, parallel: int) -> int:
    """As much as that many full caches take, or what is available less a tenth."""
    full, available = parallel * model.cache_bytes(model.context), model.available_bytes()
    return full if available is None else min(full, available - available // 10)
