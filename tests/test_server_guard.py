"""Who may come in: names, origins, keys, kinds and sizes of a request, checked on its head."""

import asyncio
import base64
from typing import Any

import pytest
from serving import Local, error_of

from glmcpu import limits
from glmcpu.server.guard import Guard, Receive, Rules, Scope, Send, is_loopback

KEY = "sesame-open"
BEARER = {"Authorization": f"Bearer {KEY}"}
KEYED = Rules(api_key=KEY, host="0.0.0.0")  # noqa: S104


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the body and answers with its length."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(size).encode()})


def guarded(rules: Rules | None = None) -> Local:
    return Local(Guard(echo, rules or Rules()))


def refused(response: Any) -> tuple[int, str]:
    return response.status_code, error_of(response)["code"]


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "localhost.:1", "127.0.0.1:8000", "127.9.9.9", "[::1]:8000"]
)
def test_this_machine_is_served_by_its_own_names(host: str) -> None:
    assert guarded().get("/x", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.com", "evil.com:8000", "127.0.0.1.evil.com", "192.168.0.7", "", "[::1", "[2001:db8::1]", "0x7f.1"]
)
def test_names_that_lead_here_from_elsewhere_are_refused(host: str) -> None:
    assert refused(guarded().get("/x", headers={"Host": host})) == (403, "host_forbidden")


def test_the_address_and_the_allowed_pages_are_names_too() -> None:
    rules = Rules(host="box.lan", origins=("https://app.example",))
    for host in ("box.lan:8000", "app.example"):
        assert guarded(rules).get("/x", headers={"Host": host}).status_code == 200


def test_with_a_key_any_name_is_served() -> None:
    assert guarded(KEYED).get("/x", headers={"Host": "box.lan", **BEARER}).status_code == 200


@pytest.mark.parametrize("name", ["host", "origin", "authorization", "content-type", "content-length"])
def test_a_header_that_may_stand_once_is_refused_twice(name: str) -> None:
    heads = [(b"host", b"localhost"), (b"content-length", b"1"), *[(name.encode(), b"1")] * 2]
    assert asyncio.run(status_of(heads, Rules(api_key=KEY) if name == "authorization" else Rules())) == 400


async def status_of(headers: list[tuple[bytes, bytes]], rules: Rules) -> int:
    """Of a request with just these headers, some of which no client library sends."""
    scope = {"type": "http", "method": "POST", "path": "/x", "query_string": b"", "scheme": "http", "headers": headers}
    scope["http_version"] = "1.1"
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"1"}

    async def send(message: Any) -> None:
        sent.append(message)

    await Guard(echo, rules)(scope, receive, send)
    return int(sent[0]["status"])


def test_a_request_without_a_host_is_refused() -> None:
    assert asyncio.run(status_of([], Rules())) == 400


@pytest.mark.parametrize("origin", ["https://evil.com", "null", "chrome-extension://abc", "http://127.0.0.1:9999"])
def test_a_foreign_page_may_not_post(origin: str) -> None:
    client = guarded(Rules(origins=("https://app.example",)))
    assert refused(client.post("/x", {}, headers={"Origin": origin})) == (403, "origin_forbidden")
    assert client.get("/x", headers={"Origin": origin}).status_code == 200  # it cannot read the answer: no CORS header


@pytest.mark.parametrize("origin", ["http://127.0.0.1:8000", "https://app.example"])
def test_our_own_page_and_an_allowed_one_may(origin: str) -> None:
    client = guarded(Rules(origins=("https://app.example",)))
    assert client.post("/x", {}, headers={"Origin": origin}).status_code == 200


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"me:{password}".encode()).decode()


@pytest.mark.parametrize("path", ["/", "/v1/models", "/metrics", "/docs", "/openapi.json", "/tokenize", "/nothing"])
@pytest.mark.parametrize(
    "given",
    [
        *("", "Bearer", "Bearer ", f"Bearer {KEY[:-1]}", f"Bearer {KEY}x", f"Bearer  {KEY}", f"Bearer {KEY} {KEY}"),
        *(KEY, f"Token {KEY}", "Basic !!!", "Basic", basic("wrong"), basic(""), "Bearer " + "x" * 10_000),
    ],
)
def test_without_the_key_nobody_comes_in(path: str, given: str) -> None:
    response = guarded(KEYED).get(path, headers={"Authorization": given})
    assert refused(response) == (401, "invalid_api_key")
    assert response.headers["WWW-Authenticate"] == "Bearer"


def test_a_browser_asks_for_the_key_as_a_password() -> None:
    headers = {"Accept": "text/html,application/xhtml+xml"}
    response = guarded(KEYED).get("/docs", headers=headers)
    assert (response.status_code, response.headers["WWW-Authenticate"][:6]) == (401, "Basic ")
    assert guarded(KEYED).get("/docs", headers={**headers, "Authorization": basic(KEY)}).status_code == 200


def test_bytes_that_are_no_text_are_no_key() -> None:
    assert asyncio.run(status_of([(b"host", b"x"), (b"authorization", b"Bearer \xff\xc3")], KEYED)) == 401


@pytest.mark.parametrize("given", [f"Bearer {KEY}", f"bearer {KEY}", basic(KEY)])
def test_with_the_key_one_does(given: str) -> None:
    assert guarded(KEYED).get("/v1/models", headers={"Authorization": given}).status_code == 200


def test_health_and_preflights_need_no_key() -> None:
    assert guarded(KEYED).get("/health").status_code == 200
    assert guarded(KEYED).request("OPTIONS", "/v1/models").status_code == 200


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "json"]
)
def test_a_body_that_is_not_called_json_is_refused(kind: str) -> None:
    response = guarded().post("/x", content=b"{}", headers={"Content-Type": kind})
    assert refused(response) == (415, "unsupported_media_type")
    assert response.headers["Connection"] == "close"


def test_json_may_name_its_charset() -> None:
    assert guarded().post("/x", content=b"{}", headers={"Content-Type": "Application/JSON; charset=utf-8"}).text == "2"


def test_sizes_are_refused_from_one_byte_more() -> None:
    client, most = guarded(), limits.HTTP_BODY_BYTES
    json_kind = {"Content-Type": "application/json"}
    assert client.post("/x", content=b" " * most, headers=json_kind).text == str(most)
    assert refused(client.post("/x", content=b" " * (most + 1), headers=json_kind)) == (413, "body_too_large")


def test_a_body_in_chunks_is_counted_as_it_comes() -> None:
    from glmcpu.server.problems import Problem

    async def pieces() -> Any:
        while True:
            yield b" " * 65536

    client = guarded()
    with pytest.raises(Problem) as caught:  # a route makes an answer of it
        client.post("/x", content=pieces(), headers={"Content-Type": "application/json"})
    assert caught.value.status_code == 413


def test_a_body_with_two_ends_is_refused() -> None:
    heads = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    both = [*heads, (b"content-length", b"1"), (b"transfer-encoding", b"chunked")]
    assert asyncio.run(status_of(both, Rules())) == 400


def test_heads_have_a_bound() -> None:
    client = guarded()
    assert refused(client.get("/x", headers={f"h{n}": "1" for n in range(limits.HTTP_HEADERS)}))[0] == 431
    assert refused(client.get("/x", headers={"h": "x" * limits.HTTP_HEAD_BYTES})) == (431, "head_too_large")
    assert refused(client.get("/" + "x" * limits.HTTP_HEAD_BYTES)) == (431, "head_too_large")


def test_too_many_connections_are_told_to_come_later() -> None:
    client = guarded(Rules(connections=lambda: limits.HTTP_CONNECTIONS + 1))
    response = client.get("/x")
    assert refused(response) == (503, "server_busy")
    assert response.headers["Retry-After"] == "1"
    assert guarded(Rules(connections=lambda: limits.HTTP_CONNECTIONS)).get("/x").status_code == 200


def test_a_refusal_at_the_official_path_has_the_official_shape() -> None:
    assert guarded(KEYED).post("/", {}).json()["status"] == 401


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1", "127.1.2.3"])
def test_loopback(name: str) -> None:
    assert is_loopback(name)


@pytest.mark.parametrize("name", ["", "0.0.0.0", "::", "10.0.0.1", "example.com", "localhost.evil.com"])  # noqa: S104
def test_not_loopback(name: str) -> None:
    assert not is_loopback(name)
