"""A small Hugging Face hub on loopback: the listing, the files, a second host for large ones, and faults on demand.

    GET /api/models/{name}[/revision/{rev}]     the listing with sizes, git blob ids and SHA-256 of large files
    GET /{name}/resolve/{rev}/{file}            the file, or a redirect to the other host for a large one

`hub.faults[file]` is a list of faults; each request for that file's bytes takes the first. `hub.seen` has every GET.
"""

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

NAME = "THUDM/chatglm-6b"
NEW_NAME = "zai-org/chatglm-6b"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def git_blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@dataclass
class Fault:
    """What to do instead of sending the file: each field changes one thing."""

    status: int | None = None  # answer this, with `headers` and `body`
    body: bytes | None = None  # send this for content
    cut: int | None = None  # stop after so many bytes of the answer
    stall: float = 0.0  # wait so many seconds before the first byte
    ignore_range: bool = False  # 200 and everything, whatever was asked
    chunked: bool = False  # no Content-Length
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Seen:
    host: str  # "hub" or "cdn"
    path: str
    headers: dict[str, str]


@dataclass
class Hub:
    """The state of the two servers; tests change it between and during requests."""

    files: dict[str, bytes]
    large: set[str]
    url: str = ""
    cdn_url: str = ""
    commit: str = COMMIT
    etag: str = "v1"
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    listing_faults: list[Fault] = field(default_factory=list)
    listed: dict[str, dict[str, Any]] = field(default_factory=dict)  # replaces or adds entries of the listing
    seen: list[Seen] = field(default_factory=list)

    def requested(self) -> list[str]:
        """The names of the files whose bytes were asked for, in order."""
        large = [s.path.removeprefix("/cdn/") for s in self.seen if s.host == "cdn"]
        small = [s.path.rpartition("/")[2] for s in self.seen if f"/{NEW_NAME}/resolve/" in s.path]
        return [n for n in small if n not in self.large] + large

    def siblings(self) -> list[dict[str, Any]]:
        listed = {}
        for name, content in self.files.items():
            listed[name] = {"rfilename": name, "size": len(content), "blobId": git_blob_id(content)}
            if name in self.large:
                listed[name]["lfs"] = {
                    "size": len(content),
                    "sha256": hashlib.sha256(content).hexdigest(),
                    "pointerSize": 134,
                }
        return list((listed | self.listed).values())


def _handler(hub: Hub, host: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # head and body are two writes; together they would wait 40 ms for an answer

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.seen.append(Seen(host, path, {k.lower(): v for k, v in self.headers.items()}))
            with contextlib.suppress(ConnectionError):
                if host == "cdn":
                    self.send_file(path.removeprefix("/cdn/"))
                elif path.startswith(f"/api/models/{NAME}"):
                    self.redirect(path.replace(NAME, NEW_NAME) + "?blobs=True")
                elif path.startswith(f"/api/models/{NEW_NAME}"):
                    self.send_listing(path.removeprefix(f"/api/models/{NEW_NAME}"))
                elif f"/{NAME}/resolve/" in path:
                    self.redirect(path.replace(NAME, NEW_NAME))
                elif path.startswith(f"/{NEW_NAME}/resolve/{hub.commit}/"):
                    name = path.rpartition("/")[2]
                    if name in hub.large:
                        self.redirect(f"{hub.cdn_url}/cdn/{name}")
                    else:
                        self.send_file(name)
                else:
                    self.answer(404, b"not found", {"X-Error-Code": "RepoNotFound"})

        def do_HEAD(self) -> None:
            """What hf_hub_download asks before it fetches; only the metadata is in the answer."""
            path = unquote(urlsplit(self.path).path)
            name = path.rpartition("/")[2]
            listed = {s["rfilename"]: s for s in hub.siblings()}[name]
            digest = listed["lfs"]["sha256"] if name in hub.large else listed["blobId"]
            self.send_response(200)
            for key, value in {"X-Repo-Commit": hub.commit, "ETag": f'"{digest}"'}.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(listed["size"]))
            self.end_headers()

        def send_listing(self, tail: str) -> None:
            fault = hub.listing_faults.pop(0) if hub.listing_faults else Fault()
            if fault.status:
                self.answer(fault.status, fault.body or b"{}", fault.headers)
            elif tail not in ("", "/revision/main", f"/revision/{hub.commit}"):
                self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            else:
                info = {"id": NEW_NAME, "sha": hub.commit, "siblings": hub.siblings()}
                self.answer(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

        def redirect(self, where: str) -> None:
            self.answer(307, b"", {"Location": where})

        def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body)

        def send_file(self, name: str) -> None:
            fault = hub.faults[name].pop(0) if hub.faults.get(name) else Fault()
            if fault.stall:
                time.sleep(fault.stall)
            if fault.status:
                self.answer(fault.status, fault.body or b"", fault.headers)
                return
            content = hub.files[name] if fault.body is None else fault.body
            begin, etag = 0, f'"{hub.etag}"'
            asked = self.headers.get("Range")
            same = self.headers.get("If-Range") in (None, etag)
            if asked and same and not fault.ignore_range:
                begin = int(asked.removeprefix("bytes=").removesuffix("-"))
            body = content[begin:]
            headers = {"ETag": etag, "Content-Length": str(len(body))}
            if begin:
                headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
            if fault.chunked:
                del headers["Content-Length"]
                headers["Connection"] = "close"
            self.send_response(206 if begin else 200)
            for key, value in (headers | fault.headers).items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body[: fault.cut])
            if fault.cut is not None:
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@contextlib.contextmanager
def serve(files: dict[str, bytes], large: set[str]) -> Iterator[Hub]:
    """Both hosts, running until the block ends."""
    hub = Hub(dict(files), set(large))
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub, host)) for host in ("hub", "cdn")]
    hub.url, hub.cdn_url = (f"http://127.0.0.1:{s.server_port}" for s in servers)
    threads = [threading.Thread(target=s.serve_forever, args=(0.02,), daemon=True) for s in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()
