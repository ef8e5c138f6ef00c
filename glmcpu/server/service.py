"""The model behind a server: absent while it loads, then an engine, and at the end closed with a grace time.

    start() -> loading -> ready -> close(grace_s)
                  \\-> failed, with the error that ends the server

The port is open meanwhile, so that who asks early gets "503, try again" and not a refused connection.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from glmcpu.engine import Engine
from glmcpu.errors import BusyError
from glmcpu.model import Model
from glmcpu.server.problems import Problem, as_problems
from glmcpu.stream import Stream

if TYPE_CHECKING:
    from glmcpu.generate import Options

STUCK_S = 60.0
_LOADING_S = 2
_log = logging.getLogger("glmcpu.server")


class Service:
    """Gives the engine to whoever asks, or the refusal that tells why there is none."""

    def __init__(self, name: str, load: Callable[[], Engine]) -> None:
        """`load` opens the model, compiles its kernels and starts an engine; it is called in a thread of its own."""
        self.name = name
        self.failure: BaseException | None = None
        self.closing = False
        self._load, self._engine = load, cast(Engine | None, None)
        self._loader = threading.Thread(target=self._run, name="glmcpu loader", daemon=True)

    def start(self) -> None:
        """Begins to load."""
        self._loader.start()

    @property
    def loading(self) -> bool:
        """Whether the model is on its way."""
        return self._engine is None and self.failure is None

    @property
    def engine(self) -> Engine:
        """The engine; raises the Problem that says why there is none."""
        if self.closing:
            raise Problem(503, "the server is shutting down; ask again when it is back", "shutting_down")
        if self._engine is None:
            headers = {"Retry-After": str(_LOADING_S)}
            raise Problem(503, "the model is loading; try again in a moment", "model_loading", headers=headers)
        if failure := self._engine.state().failure:
            raise Problem(503, failure, "engine_ended")
        return self._engine

    @property
    def model(self) -> Model:
        """The model, once it is there."""
        return self.engine.model

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer; a model without one is refused at the start."""
        return self.engine.model.tokenizer

    def page_engine(self) -> Engine:
        """The engine for the web page, which knows BusyError."""
        try:
            return self.engine
        except Problem as problem:
            raise BusyError(problem.message) from problem

    def check_room(self, coming: int) -> None:
        """Raises the Problem that a request for an answer would end with when so many come first."""
        with as_problems():
            self.engine.check_room(coming)

    def submit(self, requests: "Sequence[tuple[list[int], Options]]") -> list[Stream]:
        """Asks for several answers, all of them or none."""
        engine, streams = self.engine, list[Stream]()
        try:
            for ids, options in requests:
                with as_problems():
                    streams.append(engine.submit(ids, **options))
        except Problem:
            for stream in streams:
                stream.cancel()
            raise
        return streams

    def health(self) -> tuple[int, dict[str, Any]]:
        """Status code and body of /health."""
        try:
            state = self.engine.state()
        except Problem as problem:
            return 503, {"status": problem.code, "model": self.name, "running": 0, "waiting": 0}
        about = {"model": self.name, "running": state.running, "waiting": state.waiting}
        if state.quiet_s > STUCK_S:
            return 503, {"status": "engine_stuck", "quiet_s": round(state.quiet_s), **about}
        return 200, {"status": "ok", **about}

    def close(self, grace_s: float = 0.0) -> None:
        """Takes no more requests, lets those there are finish within `grace_s`, and ends the rest."""
        self.closing = True
        if self._engine is not None:
            self._engine.close(grace_s)

    def _run(self) -> None:
        try:
            engine = self._load()
        except BaseException as error:
            self.failure = error
            return
        self._engine = engine
        if self.closing:
            engine.close()


def report(error: BaseException, request_id: str) -> None:
    """Writes a failure of ours to the log, with its traceback."""
    _log.error("request %s failed", request_id, exc_info=error)
