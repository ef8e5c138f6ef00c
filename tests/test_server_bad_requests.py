"""The fault catalogue of HTTP, byte by byte on a socket: every row is answered or refused, and the next one is served.

Rows of other files: slow, stalled and leaving clients in test_server_protocol.py; names, origins and keys in
test_server_guard.py; JSON in test_server_routes.py; fields in test_server_fields.py and test_server_official_api.py;
paths, methods and texts of all kinds in test_server_app.py; streams, failures and loading in test_server_openai_api.py;
a stuck engine in test_server_service.py; log lines in test_server_telemetry.py.

Deliberately otherwise than the catalogue says: a line end may be a bare LF and a header may be folded, as HTTP/1.1 once
allowed (no proxy's reading differs from ours, which does not forward); a half-closed connection counts as left, since
that is how most clients leave; half a surrogate pair is refused for the whole body, without a field's name; unknown
fields are ignored unless one is nearly a known name; what waits when the server ends is answered within the grace time
too; an answer has no time limit of its own, only a number of tokens; an engine that fails is not ended after three
times, and one that ends is told by /health; with a key the Host header is free.
"""

import json
from collections.abc import Iterator

import pytest
from serving import CHAT, HELLO, Live, live

from glmcpu import limits

HOST = "Host: localhost"
JSON = "Content-Type: application/json"
BODY = json.dumps({"messages": HELLO, "max_tokens": 1})


def head(*lines: str, first: str = f"POST {CHAT} HTTP/1.1") -> bytes:
    return "\r\n".join([first, *lines, "", ""]).encode("latin-1")


def get(path: str = "/health", *lines: str) -> bytes:
    return head(HOST, "Connection: close", *lines, first=f"GET {path} HTTP/1.1")


def post(*lines: str, body: str = BODY) -> bytes:
    return head(HOST, JSON, "Connection: close", *lines) + body.encode()


def chunked(data: bytes, *lines: str) -> bytes:
    return post("Transfer-Encoding: chunked", *lines, body="") + data


CHUNK = f"{len(BODY):x}\r\n{BODY}\r\n".encode()
# bytes, the status of the answer
ROWS: dict[str, tuple[bytes, int]] = {
    "sound": (post(f"Content-Length: {len(BODY)}"), 200),
    "sound in chunks": (chunked(CHUNK + b"0\r\n\r\n"), 200),
    "sound with trailers": (chunked(CHUNK + b"0\r\nX: y\r\n\r\n"), 200),
    "F1 long line": (get("/" + "x" * 9000 + "?" + "y" * 9000), 431),
    "F1 long header": (get("/health", "X: " + "x" * 100_000), 431),
    "F1 long header without end": (head(HOST)[:-2] + b"X: " + b"x" * 100_000, 431),
    "F1 many headers": (get("/health", *[f"X{n}: 1" for n in range(limits.HTTP_HEADERS)]), 431),
    "F1 long method": (head(HOST, first="M" * 20_000 + " / HTTP/1.1"), 431),
    "F2 NUL in a header": (get("/health", "X: a\0b"), 400),
    "F2 CR in a header": (get("/health", "X: a\rb"), 400),
    "F2 space before the colon": (get("/health", "X : a"), 400),
    "F2 header without name": (get("/health", ": a"), 400),
    "F2 no header line": (get("/health", "hello"), 400),
    "F2 HTTP/0.9": (b"GET /health\r\n\r\n", 400),
    "F2 HTTP/1.0 without host": (b"GET /health HTTP/1.0\r\n\r\n", 400),
    "F2 HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "F2 HTTP/9.9": (head(HOST, first="GET /health HTTP/9.9"), 400),
    "F2 TLS hello": (bytes.fromhex("16030100f5010000f1030398") + bytes(200) + b"\r\n\r\n", 400),
    "F2 absolute target": (head(HOST, "Connection: close", first="GET http://localhost/health HTTP/1.1"), 404),
    "F2 no host": (head(first="GET /health HTTP/1.1"), 400),
    "F2 two hosts": (get("/health", "Host: evil.com"), 400),
    "F2 space in the target": (head(HOST, first="GET /a b HTTP/1.1"), 400),
    "F2 blank": (b"\0" * 100 + b"\r\n\r\n", 400),
    "F3 length negative": (post("Content-Length: -1"), 400),
    "F3 length with a sign": (post("Content-Length: +5"), 400),
    "F3 lengths in a list": (post("Content-Length: 5,6"), 400),
    "F3 two lengths": (post("Content-Length: 5", "Content-Length: 6"), 400),
    "F3 length in hex": (post("Content-Length: 0x5"), 400),
    "F3 length of 2**64": (post(f"Content-Length: {2**64}"), 413),
    "F3 length of 30 digits": (post(f"Content-Length: {'9' * 30}"), 400),
    "F3 length and chunks": (chunked(CHUNK + b"0\r\n\r\n", "Content-Length: 5"), 400),
    "F3 other transfer coding": (post("Transfer-Encoding: gzip, chunked"), 400),
    "F3 chunk size negative": (chunked(b"-1\r\n"), 400),
    "F3 chunk size in C": (chunked(b"0x5\r\nhello\r\n"), 400),
    "F3 chunk size of 2**90": (chunked(b"f" * 23 + b"\r\n"), 400),
    "F3 chunk without its line end": (chunked(b"5\r\nhelloXX0\r\n\r\n"), 400),
    "F3 endless chunk extension": (chunked(b"5;" + b"x" * 40_000), 431),
    "F3 endless trailers": (chunked(CHUNK + b"0\r\n" + b"X: y\r\n" * 8000), 431),
    "F4 declared too large": (post(f"Content-Length: {limits.HTTP_BODY_BYTES + 1}", body=""), 413),
    "F4 too large and asks first": (post("Content-Length: 99999999", "Expect: 100-continue", body=""), 413),
    "F4 chunks too large": (chunked((b"10000\r\n" + b" " * 65536 + b"\r\n") * 17), 413),
    "F9 unknown path": (get("/nothing"), 404),
    "F9 wrong method": (get(CHAT), 405),
    "F9 asterisk": (head(HOST, "Connection: close", first="OPTIONS * HTTP/1.1"), 404),
    "F9 CONNECT": (head(HOST, "Connection: close", first="CONNECT example.com:443 HTTP/1.1"), 404),
    "F10 traversal": (get("/static-offline-docs/../../../etc/passwd"), 404),
    "F10 traversal in hex": (get("/static-offline-docs/%2e%2e%2f%2e%2e%2fetc/passwd"), 404),
    "F10 NUL": (get("/static-offline-docs/a%00b"), 404),
    "F11 many ranges": (get("/health", "Range: bytes=" + "0-1," * 3000 + "0-1"), 200),
    "F12 form": (head(HOST, "Content-Type: text/plain", "Content-Length: 2") + b"{}", 415),
    "F12 no type": (head(HOST, "Content-Length: 2") + b"{}", 415),
    "F13 rebinding": (head("Host: evil.com", "Connection: close", first="GET /health HTTP/1.1"), 403),
    "F14 foreign page": (post(f"Content-Length: {len(BODY)}", "Origin: https://evil.com"), 403),
    "F17 empty": (head(HOST, JSON, "Connection: close", "Content-Length: 0"), 400),
    "F31 upgrade": (get("/health", "Upgrade: websocket", "Sec-WebSocket-Key: x", "Connection: Upgrade"), 200),
    "F31 upgrade alone": (
        head(HOST, "Connection: Upgrade, close", "Upgrade: h2c", first="GET /health HTTP/1.1"),
        200,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live() as found:
        yield found


@pytest.mark.parametrize("row", ROWS)
def test_every_row_is_answered_and_the_next_request_is_served(row: str, server: Live) -> None:
    data, status = ROWS[row]
    answer = server.exchange(data)
    assert answer.split(b" ")[1:2] == [str(status).encode()], answer[:300]
    answer_head, _, body = answer.partition(b"\r\n\r\n")
    if status >= 400:
        assert b"content-type: application/json" in answer_head.lower()
        assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
    assert server.alive()


@pytest.mark.parametrize("row", ["F3 length negative", "F3 length and chunks", "F4 declared too large", "F12 form"])
def test_what_follows_a_refused_body_is_not_read_as_a_request(row: str, server: Live) -> None:
    answer = server.exchange(ROWS[row][0] + get("/v1/models"))
    assert answer.count(b"HTTP/1.1 ") == 1
    assert server.alive()


def test_a_body_that_may_come_is_asked_for(server: Live) -> None:
    answer = server.exchange(post(f"Content-Length: {len(BODY)}", "Expect: 100-continue"))
    assert answer.startswith(b"HTTP/1.1 100")
    assert b"HTTP/1.1 200" in answer


def test_every_way_to_cut_a_request_short_is_survived(server: Live) -> None:
    whole = ROWS["sound"][0]
    for length in range(0, len(whole), 7):
        with server.connect() as client:
            client.sendall(whole[:length])
    assert server.alive()


def test_every_byte_of_a_request_may_be_another(server: Live) -> None:
    whole = ROWS["sound"][0]
    for place in range(0, len(whole), 3):
        wrong = whole[:place] + bytes([whole[place] ^ 0x15]) + whole[place + 1 :]
        with server.connect() as client:
            client.sendall(wrong)
            client.shutdown(1)
            while answer := client.recv(65536):
                assert not answer.startswith(b"HTTP/1.1 5"), wrong
    assert server.alive()
