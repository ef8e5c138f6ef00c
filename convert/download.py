"""One file over HTTP: goes on where it was cut off, and is kept only when its digest is the promised one.

    partial file -> hash what is there -> GET with Range -> append and hash -> compare with the promised digest

huggingface_hub 2.x resumes inside one call only and compares the size only, so the byte loop is ours. A partial file is
named by the digest of the whole, so bytes of two versions never share a name; within a run `If-Range` asks for the
same version. Where a resumed file has the wrong digest its old bytes may be at fault: it is fetched once more from 0.
"""

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from glmcpu import limits
from glmcpu.errors import MachineError, NetworkError, printable, shown
from glmcpu.files import open_regular, reason

from .transport import Interrupted, chunks, get, host_of, may_pass, pause, retry_after

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})")
_IMPOSTORS = {
    b"version https://git-lfs": "a Git LFS pointer",
    b"<!doctype": "a web page (a network's login page?)",
    b"<html": "a web page (a network's login page?)",
}


@dataclass(frozen=True)
class Remote:
    """A file as the hub promises it: `size` in bytes, `digest` in lower-case hex.

    64 digits are the SHA-256 of the content (Git LFS), 40 are git's blob id: SHA-1 of a short header and the content.
    """

    name: str
    url: str
    size: int
    digest: str

    @property
    def sha256(self) -> str | None:
        return self.digest if len(self.digest) == 64 else None

    def hasher(self) -> Any:
        """A fresh hash object whose hex digest over the whole content is `digest`."""
        if self.sha256:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)


class _WrongBytesError(NetworkError):
    """What arrived is complete and is not the promised file, so it must not stay."""


def download(remote: Remote, path: Path, headers: Mapping[str, str], advance: Callable[[int], None]) -> None:
    """Fills `path` until it is the promised file; what is already there is used.

    advance(n) reports n more bytes that count, or fewer where they had to be thrown away. Raises NetworkError when
    the server gives up or gives something else: wrong bytes are deleted, a cut-off part stays for the next run.
    Raises MachineError when `path` is not a plain file, OSError when it cannot be written.
    """
    try:
        with _open_partial(path) as file:
            partial = _Partial(file, remote, advance)
            resumed = partial.size > 0
            _fill(partial, headers)
            if resumed and partial.digest() != remote.digest:
                partial.restart()
                _fill(partial, headers)
            if partial.digest() != remote.digest:
                raise _WrongBytesError(
                    f"{remote.name}: checksum mismatch: {host_of(remote.url)} promised {remote.digest[:12]}… and sent "
                    f"{partial.digest()[:12]}…; the file was deleted, run again"
                )
            file.flush()
            os.fsync(file.fileno())
    except _WrongBytesError:
        path.unlink(missing_ok=True)
        raise
    except BaseException:
        with contextlib.suppress(OSError):
            if path.stat().st_size == 0:
                path.unlink()
        raise


def is_promised(path: Path, remote: Remote, advance: Callable[[int], None]) -> bool:
    """Whether the file at `path` has the promised size and digest."""
    if not path.is_file() or path.stat().st_size != remote.size:
        return False
    hasher, seen = remote.hasher(), 0
    with open_regular(path) as file:
        while chunk := file.read(1 << 20):
            hasher.update(chunk)
            seen += len(chunk)
            advance(len(chunk))
    if hasher.hexdigest() == remote.digest:
        return True
    advance(-seen)
    return False


class _Partial:
    """The bytes of one file that have arrived, on disk, with their digest so far."""

    def __init__(self, file: BinaryIO, remote: Remote, advance: Callable[[int], None]) -> None:
        self.file, self.remote, self.advance = file, remote, advance
        self.etag: str | None = None
        self.size, self.hasher = 0, remote.hasher()
        while chunk := file.read(1 << 20):
            self._count(chunk)

    def append(self, chunk: bytes) -> None:
        if self.size + len(chunk) > self.remote.size:
            raise _WrongBytesError(
                f"{self.remote.name}: {host_of(self.remote.url)} sends more than the {self.remote.size:,} bytes "
                "it promised; the file was deleted, run again or set another HF_ENDPOINT"
            )
        self.file.write(chunk)
        self._count(chunk)

    def restart(self) -> None:
        self.file.seek(0)
        self.file.truncate()
        self.advance(-self.size)
        self.size, self.hasher, self.etag = 0, self.remote.hasher(), None

    def digest(self) -> str:
        return str(self.hasher.hexdigest())

    def _count(self, chunk: bytes) -> None:
        self.hasher.update(chunk)
        self.size += len(chunk)
        self.advance(len(chunk))


def _open_partial(path: Path) -> BinaryIO:
    """Opens for reading and writing, created where absent; a link or device in its place is refused, not followed."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0), 0o666)
    except OSError as error:
        raise MachineError(f"{shown(path)}: cannot be opened to download into: {reason(error)}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise MachineError(f"{shown(path)}: is not a regular file; remove it and run again")
    return os.fdopen(descriptor, "r+b")


def _fill(partial: _Partial, headers: Mapping[str, str]) -> None:
    """Requests, and requests again after interruptions, until all bytes are there."""
    remote, failures = partial.remote, 0
    while partial.size < remote.size:
        begin = partial.size
        try:
            _receive(partial, headers)
            if partial.size < remote.size:
                raise Interrupted("the connection was cut")
        except Interrupted as interrupted:
            failures = 1 if partial.size - begin >= limits.DOWNLOAD_PROGRESS_BYTES else failures + 1
            if failures > limits.DOWNLOAD_RETRIES:
                raise NetworkError(
                    f"{remote.name}: {host_of(remote.url)}: {interrupted} at byte {partial.size:,} of {remote.size:,}, "
                    f"after {failures} attempts; what has arrived is kept, run again to go on"
                ) from interrupted
            pause(failures, interrupted)


def _receive(partial: _Partial, headers: Mapping[str, str]) -> None:
    """One request; appends what it brings. Raises Interrupted for what may pass, NetworkError for what will not."""
    remote, ask = partial.remote, {**headers, "Accept-Encoding": "identity"}
    if partial.size:
        ask["Range"] = f"bytes={partial.size}-"
        if partial.etag:
            ask["If-Range"] = partial.etag
    with get(remote.url, ask) as response:
        status = response.status_code
        if may_pass(status):
            raise Interrupted(f"it answers {status}", retry_after(response.headers))
        if status == 416 or (status == 206 and not _continues(response, partial)):
            partial.restart()
            raise Interrupted("it cannot continue the file")
        if status not in (200, 206):
            way = (
                "ask for access there and set HF_TOKEN"
                if status in (401, 403)
                else "run again, or set another HF_ENDPOINT"
            )
            raise NetworkError(f"{remote.name}: {host_of(remote.url)} lists it and answers {status} for it; {way}")
        if status == 200 and partial.size:
            partial.restart()
        body = chunks(response)
        first = next(body, b"")
        _check_body(response, first, partial)
        etag = response.headers.get("etag", "")
        partial.etag = etag if etag.startswith('"') else None
        partial.append(first)
        for chunk in body:
            partial.append(chunk)


def _continues(response: Any, partial: _Partial) -> bool:
    """Whether a 206 answer starts at the byte that was asked for, in a file of the promised size."""
    match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    return match is not None and (int(match[1]), int(match[2])) == (partial.size, partial.remote.size)


def _check_body(response: Any, first: bytes, partial: _Partial) -> None:
    """Refuses an answer that cannot be the (rest of the) file, before a byte of it is written."""
    remote, host = partial.remote, host_of(partial.remote.url)
    for opening, what in _IMPOSTORS.items():
        if partial.size == 0 and first[:64].lstrip().lower().startswith(opening):
            raise NetworkError(
                f"{remote.name}: {host} sends {what} in place of the file; try another network or mirror"
            )
    coding = response.headers.get("content-encoding", "identity")
    if coding != "identity":
        raise NetworkError(f"{remote.name}: {host} sends it compressed ({printable(coding)}), which was not asked for")
    length, expected = response.headers.get("content-length"), remote.size - partial.size
    if length is not None and length != str(expected):
        raise NetworkError(
            f"{remote.name}: {host} sends {printable(length)} bytes where {expected:,} were promised; "
            "run again later or set another HF_ENDPOINT"
        )
