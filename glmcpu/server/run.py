"""From a port to the last answer: what happens when, and what a signal does.

    take the port -> print where -> load the model, answering 503 -> serve
    SIGTERM or Ctrl-C: no new connections, answers under way get the grace time, exit 0; a second one: at once

The port is taken first because loading takes long, and because it is what fails most often.
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import FrameType
from typing import Any

import uvicorn

from glmcpu import limits
from glmcpu.errors import MachineError, UsageError
from glmcpu.files import reason
from glmcpu.server.app import Settings, build
from glmcpu.server.guard import is_loopback
from glmcpu.server.protocol import BoundedProtocol
from glmcpu.server.service import Service

GRACE_S = 10.0
_BACKLOG = 2048
_LAST_WORDS_S = 0.3  # for the ends of answers to go out
_SIGNALS = ("SIGINT", "SIGTERM", "SIGBREAK")


def check_address(host: str, api_key: str, origins: tuple[str, ...]) -> None:
    """Raises UsageError for what would let strangers in."""
    if not is_loopback(host) and not api_key:
        raise UsageError(
            f"--host {host}: other machines could use the server; set GLMCPU_API_KEY or --api-key, or leave --host out"
        )
    if api_key and not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
        raise UsageError(
            "the API key has characters that a header cannot carry; use letters, digits and signs of ASCII"
        )
    for origin in origins:
        scheme, _, rest = origin.partition("://")
        if origin == "*" and not api_key:
            raise UsageError("--allow-origin '*': every web page could use the server; name origins, or set --api-key")
        if origin != "*" and (scheme not in ("http", "https") or not rest or "/" in rest):
            raise UsageError(f"--allow-origin {origin}: an origin looks like https://example.com, without a path")


def take_port(host: str, port: int) -> socket.socket:
    """A socket that listens on no connection yet; raises MachineError when the address cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        taken = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise MachineError(f"{host}: no address of this machine ({reason(error)}); give another --host") from error
    try:
        if sys.platform != "win32":  # where it would let two servers share a port
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
        taken.listen(_BACKLOG)
    except OSError as error:
        taken.close()
        raise MachineError(f"{host}:{port} cannot be taken ({reason(error)}); give another --port") from error
    return taken


def address_of(taken: socket.socket) -> str:
    """The URL of a socket."""
    host, port = taken.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def serve(
    service: Service, settings: Settings, taken: socket.socket, *, ready: Callable[[], None], grace_s: float = GRACE_S
) -> None:
    """Serves until a signal; `ready` is called when the model is there. Raises what kept the model from loading."""
    _raise_descriptor_limit()
    server = _Server(service, settings, grace_s, ready)
    # uvicorn takes the signals too, but only in its loop: one that raised while that is made would leave half a loop.
    with server.capture_signals(), contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[taken])
    if service.failure is not None:
        raise service.failure


class _Server(uvicorn.Server):
    """uvicorn with our signals, and an end that closes the engine."""

    def __init__(self, service: Service, settings: Settings, grace_s: float, ready: Callable[[], None]) -> None:
        rules = replace(settings.rules, connections=lambda: len(self.server_state.connections))
        app = build(service, replace(settings, rules=rules))
        super().__init__(
            uvicorn.Config(
                app,
                http=BoundedProtocol,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=_BACKLOG,
                h11_max_incomplete_event_size=limits.HTTP_HEAD_BYTES,
                timeout_keep_alive=limits.HTTP_IDLE_S,
                timeout_graceful_shutdown=grace_s + 0.5,  # type: ignore[arg-type]
            )
        )
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        self._service, self._grace_s, self._ready = service, grace_s, ready
        self._told = False
        self._closer: threading.Thread | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """A first signal ends the server, a second one ends it at once; neither is raised again."""
        before = {}
        for name in _SIGNALS:
            with contextlib.suppress(ValueError, AttributeError):  # not the main thread; not this system
                number = getattr(signal, name)
                before[number] = signal.signal(number, self.handle_exit)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if self.should_exit:
            exit_now()  # asked twice: nothing is half written, and answers under way are not waited for
        self._end(self._grace_s)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens, then begins to load."""
        await super().startup(sockets)
        self._service.start()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: is the model there, has it failed?"""
        if not self._told and not self._service.loading:
            self._told = True
            if self._service.failure is None:
                gc.freeze()  # what is there now stays: looking through all of it takes 60 ms each time
                self._ready()
            else:
                self._end(0)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends the connections when their answers have ended."""
        self._end(self._grace_s)
        await super().shutdown(sockets)
        if self._closer:
            await asyncio.to_thread(self._closer.join, _LAST_WORDS_S + 0.1)

    def _end(self, grace_s: float) -> None:
        self.should_exit = True
        self._service.closing = True
        if self._closer is None:  # in a thread of its own: it waits for the answers, which need this one
            self._closer = threading.Thread(target=self._close, args=(grace_s,), daemon=True)
            self._closer.start()

    def _close(self, grace_s: float) -> None:
        self._service.close(grace_s)
        time.sleep(_LAST_WORDS_S)
        self.force_exit = True  # what is still open is a page in a browser, which waits for nothing


def exit_now() -> None:
    """Ends the process: the interpreter's own end takes up to a second, and would disturb a thread that compiles."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(0)


def _raise_descriptor_limit() -> None:
    """As many open connections as the system lets this process have."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted: Any = 4096 if hard == resource.RLIM_INFINITY else min(hard, 4096)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
