"""One log line and some counters for every request. Neither has a word of what was said, unless asked for.

A log line is a JSON object on stderr. Metrics are Prometheus', with a fixed set of labels: a path that does not exist
counts as "other", so that nobody can fill the memory by asking for many.
"""

import json
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.process_collector import ProcessCollector

from glmcpu.errors import printable
from glmcpu.server.guard import App, Message, Receive, Scope, Send
from glmcpu.stream import Stream

PATHS = frozenset(
    {
        *("/", "/health", "/metrics", "/docs", "/openapi.json", "/tokenize", "/detokenize"),
        *("/v1/models", "/v1/chat/completions", "/v1/completions"),
    }
)
_SECONDS = (0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600)
_log = logging.getLogger("glmcpu.requests")


@dataclass
class Record:
    """What is known of a request; those who answer it fill it in."""

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    status: int = 0
    figures: dict[str, Any] = field(default_factory=dict)
    texts: dict[str, Any] = field(default_factory=dict)
    streams: Sequence[Stream] = ()
    left: bool = False

    def leave(self) -> None:
        """The client has gone: what is made for it ends now, while the news still travels through the application."""
        self.left = True
        for stream in self.streams:
            stream.cancel()


def record_of(scope: Scope) -> Record:
    """The record of the request under way."""
    record: Record = scope["glmcpu.record"]
    return record


class Metrics:
    """The counters, and what `/metrics` shows."""

    def __init__(self, busy: Callable[[], tuple[int, int]]) -> None:
        """`busy` gives how many answers run and how many requests wait."""
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each one, which says when it began
        self.registry = CollectorRegistry()
        self.requests = Counter("glmcpu_requests", "Requests answered.", ["path", "status"], registry=self.registry)
        self.tokens = Counter("glmcpu_tokens", "Tokens read and written.", ["kind"], registry=self.registry)
        self.seconds = Histogram(
            "glmcpu_request_seconds", "From head to end.", ["path"], buckets=_SECONDS, registry=self.registry
        )
        self.first = Histogram(
            "glmcpu_first_token_seconds", "From asking to the first token.", buckets=_SECONDS, registry=self.registry
        )
        ProcessCollector(registry=self.registry)
        self._busy = busy
        self.registry.register(self)

    def collect(self) -> list[GaugeMetricFamily]:
        """Prometheus asks for what changes by itself."""
        running, waiting = self._busy()
        return [
            GaugeMetricFamily("glmcpu_running", "Answers that run.", value=running),
            GaugeMetricFamily("glmcpu_waiting", "Requests that wait.", value=waiting),
        ]

    def page(self) -> bytes:
        """All of it in Prometheus' format."""
        return generate_latest(self.registry)


class Telemetry:
    """ASGI: the outermost layer, which sees refusals too."""

    def __init__(self, app: App, metrics: Metrics, *, texts: bool = False) -> None:
        """texts: whether prompts and answers stand in the log."""
        self._app, self._metrics, self._texts = app, metrics, texts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record, begin_s = Record(), time.monotonic()
        scope["glmcpu.record"] = record

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", record.id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            self._note(scope, record, time.monotonic() - begin_s)

    def _note(self, scope: Scope, record: Record, took_s: float) -> None:
        path, metrics = scope["path"], self._metrics
        label = path if path in PATHS else "other"
        metrics.requests.labels(label, record.status).inc()
        metrics.seconds.labels(label).observe(took_s)
        if "prompt_tokens" in record.figures:
            metrics.tokens.labels("prompt").inc(record.figures["prompt_tokens"])
            metrics.tokens.labels("completion").inc(record.figures["completion_tokens"])
        if "first_ms" in record.figures:
            metrics.first.observe(record.figures["first_ms"] / 1000)
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "id": record.id,
            "client": (scope.get("client") or ("",))[0],
            "method": printable(scope["method"], 20),
            "path": printable(path, 200),
            "status": record.status,
            "ms": round(1000 * took_s, 1),
            **record.figures,
            **(record.texts if self._texts else {}),
        }
        _log.info(json.dumps(line, ensure_ascii=False))
