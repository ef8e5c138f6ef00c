"""What stands between a browser and Gradio: of all that Gradio can do, only what this page needs is there.

Gradio brings uploads, a file server, a proxy and an API; what is not listed here is not found. A message could also be
a file of the server, or a component built from what the browser says: a request that names one is refused, so messages
are text. Answers are a model's words. Gradio cleans the HTML in them; should that fail, the page's policy lets only
the page's own scripts run, known by a word that is new each time, and lets nothing be loaded from anywhere else.
"""

import re
import secrets
from typing import Any

from fastapi import Request, Response
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glmcpu import limits, strict_json
from glmcpu.errors import DataError

NEEDED = {
    "GET": re.compile(r"/?|/theme\.css|/(assets|static)/[\w/.-]+|/gradio_api/(queue/data|heartbeat/\w+)"),
    "POST": re.compile(r"/gradio_api/(queue/join|run/predict|cancel|reset)"),
}
POLICY = (
    "default-src 'none'; script-src 'self' 'nonce-{nonce}'; style-src 'self' 'unsafe-inline'; connect-src 'self'; "
    "img-src 'self' data:; font-src 'self' data:; base-uri 'self'; form-action 'none'; frame-ancestors 'none'"
)


class Guard:
    """ASGI middleware for everything under `path`; of the rest of the server it knows nothing."""

    def __init__(self, app: ASGIApp, path: str) -> None:
        self._app, self._path = app, path.rstrip("/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] != "http" or not f"{path}/".startswith(f"{self._path}/"):
            return await self._app(scope, receive, send)
        inner, method = path.removeprefix(self._path), scope["method"]
        if method not in NEEDED or not NEEDED[method].fullmatch(inner):
            return await Response("not found", 404)(scope, receive, send)
        if method == "POST":
            body = await _body(Request(scope, receive))
            if body is None:
                return await Response("not a request of the page", 400)(scope, receive, send)
            receive = _again(body, receive)
        if inner in ("", "/"):  # this one is changed on its way, so it must not be compressed
            scope = {**scope, "headers": [pair for pair in scope["headers"] if pair[0] != b"accept-encoding"]}
        return await self._app(scope, receive, _guarded(send, is_page=inner in ("", "/")))


async def _body(request: Request) -> bytes | None:
    """The JSON text of a request; None when it is too long, is none, or names a file or a component."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > limits.PAGE_REQUEST_BYTES:
            return None
    try:
        return None if _names_a_file(strict_json.parse(body, "request")) else body
    except DataError:
        return None


def _names_a_file(value: Any) -> bool:
    if isinstance(value, dict):
        return not value.keys().isdisjoint(("path", "file", "component")) or any(map(_names_a_file, value.values()))
    return isinstance(value, list) and any(map(_names_a_file, value))


def _again(body: bytes, receive: Receive) -> Receive:
    """Gives the body that was read, then what comes after it."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return first.pop() if first else await receive()

    return again


def _guarded(send: Send, is_page: bool) -> Send:
    """Adds the headers, and to the page's own scripts the word that lets them run."""
    nonce = secrets.token_urlsafe()

    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["content-security-policy"] = POLICY.format(nonce=nonce)
            headers["x-content-type-options"] = "nosniff"
            if is_page:
                del headers["content-length"]
        elif is_page and message["type"] == "http.response.body":
            message["body"] = message["body"].replace(b"<script", f'<script nonce="{nonce}"'.encode())
        await send(message)

    return guarded
