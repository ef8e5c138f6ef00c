"""Requests to a server that may fail: what is worth another attempt, and where a redirect may lead.

The session is huggingface_hub's own, so proxies and certificates are what the user set for it. Its transport library is
httpx or httpx2 by release; this file is the only one that meets their errors, and turns them into `Interrupted`.
"""

import contextlib
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urljoin, urlsplit

from huggingface_hub import get_session

from glmcpu import limits
from glmcpu.errors import NetworkError, printable
from glmcpu.files import reason


class Interrupted(Exception):  # noqa: N818  a state of the download, not an error yet
    """A failure that may pass: worth another attempt, after `wait_s` seconds where the server named a time."""

    def __init__(self, message: str, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.wait_s = wait_s


def chunks(response: Any) -> Iterator[bytes]:
    """The body as it arrives; raises Interrupted when the connection breaks."""
    try:
        yield from response.iter_raw()
    except Exception as error:  # httpx's or httpx2's, by the hub client's release: only that library runs here
        raise Interrupted(why(error)) from error


@contextlib.contextmanager
def get(url: str, headers: dict[str, str]) -> Iterator[Any]:
    """The response to a GET, redirects followed; the token stays with the host it belongs to."""
    for _ in range(limits.DOWNLOAD_REDIRECTS + 1):
        with contextlib.ExitStack() as stack:
            try:
                request = get_session().stream(
                    "GET", url, headers=headers, timeout=limits.DOWNLOAD_STALL_S, follow_redirects=False
                )
                response = stack.enter_context(request)
            except Exception as error:  # as in `chunks`
                raise Interrupted(why(error)) from error
            location = response.headers.get("location")
            if response.status_code not in (301, 302, 303, 307, 308) or not location:
                yield response
                return
        url, headers = _redirected(url, location, headers)
    raise NetworkError(f"{host_of(url)} redirects more than {limits.DOWNLOAD_REDIRECTS} times; check HF_ENDPOINT")


def _redirected(url: str, location: str, headers: dict[str, str]) -> tuple[str, dict[str, str]]:
    """Where a redirect leads, and the headers for there: never from https to less, no token for another host."""
    try:
        target = urljoin(url, location)
        old, new = urlsplit(url), urlsplit(target)
    except ValueError as error:
        raise NetworkError(f"{host_of(url)} redirects to a malformed address; check HF_ENDPOINT") from error
    if new.scheme not in ("https", old.scheme):
        raise NetworkError(
            f"{host_of(url)} redirects to an insecure address ({printable(new.scheme)}); check HF_ENDPOINT"
        )
    if (old.scheme, old.netloc) != (new.scheme, new.netloc):
        headers = {k: v for k, v in headers.items() if k.lower() != "authorization"}
    return target, headers


def why(error: Exception) -> str:
    """A transport error in a few words, without addresses."""
    if "timeout" in type(error).__name__.lower():
        return f"nothing came for {limits.DOWNLOAD_STALL_S:.0f} s"
    return f"connection failed: {printable(reason(error))}"


def pause(failures: int, interrupted: Interrupted) -> None:
    """Waits before attempt number failures + 1: as long as the server asked, else 1, 2, 4, 8, 8 ... seconds."""
    backoff_s = limits.DOWNLOAD_BACKOFF_S * 2 ** min(failures - 1, 3)
    time.sleep(min(interrupted.wait_s or backoff_s, limits.DOWNLOAD_WAIT_S))


def may_pass(status: int) -> bool:
    """Whether an HTTP status says "later" and not "no"."""
    return status in (408, 429) or status >= 500


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The wait in seconds that a response asks for; None when it names none (or a date)."""
    text = headers.get("retry-after", "")
    return float(text) if re.fullmatch(r"\d{1,6}", text) else None


def host_of(url: str) -> str:
    """The host (and port) of a URL for messages: no user, no password, no query, which may hold secrets."""
    return printable(urlsplit(url).netloc.rpartition("@")[2])
