"""The whole application: its routes and their documentation, what is not there, and other origins."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from serving import CHAT, HELLO, Local, chat_ids, demo, error_of, local

from glmcpu.server.app import Settings
from glmcpu.server.guard import Rules

PAGE = "https://app.example"
PATHS = {
    "/",
    CHAT,
    "/v1/completions",
    "/v1/models",
    "/v1/models/{name}",
    "/tokenize",
    "/detokenize",
    "/health",
    "/metrics",
}


@pytest.fixture(scope="module")
def client() -> Iterator[Local]:
    with local() as found:
        yield found


def test_a_browser_is_led_to_the_documentation(client: Local) -> None:
    response = client.get("/")
    assert (response.status_code, response.headers["location"]) == (307, "/docs")


def test_the_documentation_fetches_nothing_from_elsewhere(client: Local) -> None:
    page = client.get("/docs").text
    addresses = re.findall(r"""(?:src|href|url)\s*[=:]\s*["']([^"']+)""", page)
    assert len(addresses) >= 4
    for address in addresses:
        assert address.startswith("/"), address
        assert not address.startswith("//")
        assert client.get(address).status_code == 200
    assert "https://" not in page


def test_the_schema_has_every_route_and_what_each_answers(client: Local) -> None:
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]) == PATHS
    for path, methods in schema["paths"].items():
        for about in methods.values():
            assert about["description"], path
            for status in ("4XX", "5XX"):
                assert about["responses"][status]["content"]["application/json"]["schema"] == {
                    "$ref": "#/components/schemas/ErrorReply"
                }
            assert "422" not in about["responses"]
            (kind,) = set(about["responses"]["200"]["content"]) - {"text/event-stream"}
            assert kind == ("text/plain" if path == "/metrics" else "application/json")
            assert about["responses"]["200"]["content"][kind]["schema"]
    chat = schema["components"]["schemas"]["ChatRequest"]
    assert chat["required"] == ["messages"]
    assert chat["properties"]["temperature"] == {
        "type": "number",
        "maximum": 2.0,
        "minimum": 0.0,
        "title": "Temperature",
        "description": "0 always takes the likeliest token.",
        "default": 0.95,
    }
    assert "<" not in json.dumps(schema["components"]["schemas"]).replace("<sop>", "")  # no names of our insides


@pytest.mark.parametrize(
    "path",
    [
        *("/nothing", "/v1", "/v1/", "/v1/chat", "/v1/models/", f"{CHAT}/", "//v1/models", "/redoc", "/health/x"),
        *("/static-offline-docs/../../etc/passwd", "/static-offline-docs/%2e%2e/%2e%2e/etc/passwd"),
        *("/static-offline-docs/..%5c..%5cx", "/static-offline-docs/%00", "/static-offline-docs/%c0%ae%c0%ae/x"),
        *("/static-offline-docs/", "/static-offline-docs//etc/passwd", "/%2e%2e/etc/passwd", "/web", "/web/"),
    ],
)
def test_what_is_not_there_is_404(path: str, client: Local) -> None:
    response = client.get(path)
    assert response.status_code == 404, response.text
    assert error_of(response)["code"] in ("not_found", "model_not_found")


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "MADEUP"])
@pytest.mark.parametrize("path", [CHAT, "/tokenize"])
def test_another_method_is_405_and_says_which_there_is(method: str, path: str, client: Local) -> None:
    response = client.request(method, path)
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    if method != "HEAD":
        assert error_of(response)["code"] == "method_not_allowed"


def test_a_range_of_many_pieces_is_nothing_to_a_route(client: Local) -> None:
    ranges = "bytes=" + ",".join("0-1" for _ in range(3000))
    assert client.get("/v1/models", headers={"Range": ranges}).status_code == 200
    assert client.get("/static-offline-docs/favicon.png", headers={"Range": ranges}).status_code in (200, 206, 400, 416)


def test_texts_become_ids_and_come_back(client: Local) -> None:
    tokenizer = demo().tokenizer
    assert tokenizer is not None
    text = "Hello 你好"
    ids = client.post("/tokenize", {"content": text}).json()["tokens"]
    assert ids == tokenizer.encode(text, False)
    assert client.post("/tokenize", {"content": text, "add_special": True}).json()["tokens"] == tokenizer.encode(text)
    assert client.post("/detokenize", {"tokens": ids}).json() == {"content": text}
    assert client.post("/detokenize", {"tokens": []}).json() == {"content": ""}
    reply = client.post(CHAT, {"messages": HELLO, "max_tokens": 1}).json()
    assert reply["usage"]["prompt_tokens"] == len(chat_ids("hello"))


@pytest.mark.parametrize("tokens", [[-1], [99_999], [1.5], "x", None, [[]]])
def test_ids_of_no_tokenizer_are_refused(tokens: Any, client: Local) -> None:
    response = client.post("/detokenize", {"tokens": tokens})
    assert response.status_code == 400
    assert error_of(response)["param"].startswith("tokens")


@pytest.mark.parametrize(
    "piece", ["a", " ", "\n", "\ufffd", "e\u0301", "👩\u200d👩\u200d👧", "\U000e0041", "עב", "𠀀", "7", "QUJD"]
)
def test_long_texts_of_all_kinds_are_read(piece: str, client: Local) -> None:
    text = piece * (100_000 // len(piece.encode()))
    assert client.post("/tokenize", {"content": text}).status_code == 200
    response = client.post(CHAT, {"messages": [{"role": "user", "content": text}], "max_tokens": 1})
    assert response.status_code in (200, 400), response.text


def test_no_page_of_another_origin_may_read_answers(client: Local) -> None:
    for headers in ({"Origin": PAGE}, {"Origin": PAGE, "Access-Control-Request-Method": "POST"}):
        for method in ("GET", "OPTIONS"):
            response = client.request(method, "/v1/models", headers=headers)
            assert not [name for name in response.headers if name.startswith("access-control")]


def test_a_page_of_an_allowed_origin_may() -> None:
    rules = Rules(api_key="k", origins=(PAGE,))
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    with local(settings=Settings(rules)) as client:
        response = client.request("OPTIONS", CHAT, headers={"Origin": PAGE, **asked})
        assert (response.status_code, response.headers["access-control-allow-origin"]) == (200, PAGE)
        given = {"Origin": PAGE, "Authorization": "Bearer k"}
        response = client.post(CHAT, {"messages": HELLO, "max_tokens": 1}, headers=given)
        assert response.headers["access-control-allow-origin"] == PAGE
        assert "x-request-id" in response.headers["access-control-expose-headers"]
        response = client.post(CHAT, {"messages": HELLO}, headers={"Origin": PAGE})
        assert (response.status_code, response.headers["access-control-allow-origin"]) == (401, PAGE)
        assert client.request("OPTIONS", CHAT, headers={"Origin": "https://evil.com", **asked}).status_code == 400


def test_a_request_id_names_each_answer(client: Local) -> None:
    assert len({client.get(path).headers["x-request-id"] for path in ("/health", "/v1/models", "/nothing")}) == 3
