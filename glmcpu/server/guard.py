"""Who may come in, and with what: checked on the head of a request, before anything is read or computed.

A server on one's own machine can be reached by every web page one opens: by a name that its owner points at 127.0.0.1
(DNS rebinding: the Host header tells), or by a form sent across sites (the Origin header and the content type tell).
Hence on a loopback address only loopback names are served, foreign origins must be named by --allow-origin, and a body
must be JSON. With an API key it is asked for everywhere but at /health; a browser is asked for it as a password.
"""

import base64
import binascii
import hmac
import ipaddress
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from glmcpu import limits
from glmcpu.server.problems import Problem

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = frozenset({"/health"})
_WITH_BODY = frozenset({"POST", "PUT", "PATCH", "DELETE"})


@dataclass(frozen=True)
class Rules:
    """api_key: "" is none; host: the address bound; origins: allowed web pages."""

    api_key: str = ""
    host: str = "127.0.0.1"
    origins: Collection[str] = ()
    connections: Callable[[], int] = field(default=lambda: 0)


class Guard:
    """ASGI: lets a request through to the app, or answers it."""

    def __init__(self, app: App, rules: Rules) -> None:
        self._app, self._rules = app, rules
        self._names = {urlsplit(origin).hostname for origin in rules.origins} | {rules.host}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = scope["headers"]
        try:
            self._check(scope, headers)
        except Problem as problem:
            legacy = scope["path"] == "/"
            response = problem.response(legacy)
            if scope["method"] in _WITH_BODY:  # whose body is not read
                response.headers["Connection"] = "close"
            await response(scope, receive, send)
            return
        await self._app(scope, _bounded(receive), send)

    def _check(self, scope: Scope, headers: list[tuple[bytes, bytes]]) -> None:
        rules = self._rules
        if scope["http_version"] not in ("1.0", "1.1"):  # the preface of HTTP/2 looks like a request
            raise Problem(400, "this is not valid HTTP/1.1", "invalid_http", headers={"Connection": "close"})
        if len(headers) > limits.HTTP_HEADERS:
            raise Problem(431, f"more than {limits.HTTP_HEADERS} headers; send fewer", "too_many_headers")
        line = len(scope["method"]) + len(scope["path"]) + len(scope["query_string"])
        if line + sum(len(name) + len(value) for name, value in headers) > limits.HTTP_HEAD_BYTES:
            raise head_too_large()  # h11 counts only a head that came in pieces
        if rules.connections() > limits.HTTP_CONNECTIONS:
            raise Problem(503, "too many connections; try again later", "server_busy")
        host = _only(headers, b"host")
        self._check_host(host)
        origin = _only(headers, b"origin")
        own = origin is not None and host is not None and origin == f"{scope['scheme']}://{host}"
        allowed = origin is None or own or origin in rules.origins or "*" in rules.origins
        if not allowed and scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            raise Problem(403, "this web page may not use the server; start it with --allow-origin", "origin_forbidden")
        # A preflight carries no key.
        if rules.api_key and scope["path"] not in OPEN and scope["method"] != "OPTIONS":
            self._check_key(headers)
        if scope["method"] in _WITH_BODY:
            _check_body(headers)

    def _check_host(self, host: str | None) -> None:
        """Only needed where no key is: whoever has one may call the server by any name."""
        if host is None:
            raise Problem(400, "the Host header is missing", "invalid_host")
        if self._rules.api_key:
            return
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            name = ""
        if not (is_loopback(name) or name in self._names):
            raise Problem(403, "the server is not known by this name; call it as localhost", "host_forbidden")

    def _check_key(self, headers: list[tuple[bytes, bytes]]) -> None:
        kind, _, value = (_only(headers, b"authorization") or "").partition(" ")
        if kind.lower() == "basic":
            try:
                value = base64.b64decode(value, validate=True).decode().partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                value = ""
        elif kind.lower() != "bearer":
            value = ""
        if not hmac.compare_digest(value.encode(), self._rules.api_key.encode()):
            browser = any(name == b"accept" and b"text/html" in value for name, value in headers)
            challenge = 'Basic realm="glmcpu: the API key is the password"' if browser else "Bearer"
            message = "a valid API key is needed, as 'Authorization: Bearer KEY'"
            raise Problem(401, message, "invalid_api_key", headers={"WWW-Authenticate": challenge})


def is_loopback(name: str) -> bool:
    """Whether a host name or address is this machine and nobody else's."""
    if name.rstrip(".").lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _check_body(headers: list[tuple[bytes, bytes]]) -> None:
    declared, chunked = _only(headers, b"content-length"), _only(headers, b"transfer-encoding")
    if declared in (None, "0") and chunked is None:
        return  # there is none
    if declared is not None and chunked is not None:  # a proxy in front may take the other one
        message = "the body has a content-length and a transfer-encoding; send one of them"
        raise Problem(400, message, "invalid_header")
    if declared is not None and declared.isdigit() and int(declared) > limits.HTTP_BODY_BYTES:
        raise _too_large()
    kind = (_only(headers, b"content-type") or "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Problem(415, "the body must be JSON, with 'Content-Type: application/json'", "unsupported_media_type")


def _bounded(receive: Receive) -> Receive:
    """A body sent in chunks declares no length, so it is counted as it comes."""
    got = 0

    async def bounded() -> Message:
        nonlocal got
        message = await receive()
        got += len(message.get("body", b""))
        if got > limits.HTTP_BODY_BYTES:
            raise _too_large()
        return message

    return bounded


def head_too_large() -> Problem:
    """Of a request whose first line and headers are longer than they may be."""
    message = f"the head is larger than {limits.HTTP_HEAD_BYTES:,} bytes; send less"
    return Problem(431, message, "head_too_large", headers={"Connection": "close"})


def _too_large() -> Problem:
    message = f"the body is larger than {limits.HTTP_BODY_BYTES:,} bytes; send less"
    return Problem(413, message, "body_too_large", headers={"Connection": "close"})


def _only(headers: list[tuple[bytes, bytes]], name: bytes) -> str | None:
    """The value of a header; refused when it is there twice, since two readers could take different ones."""
    found = [value for key, value in headers if key == name]
    if len(found) > 1:
        raise Problem(400, f"the header {name.decode()} is there {len(found)} times; send it once", "invalid_header")
    return found[0].decode("latin-1") if found else None
