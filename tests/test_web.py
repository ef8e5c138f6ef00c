"""The web page without a browser: its languages, its sliders, and what its guard lets through."""

import asyncio
import json
import socket
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
from scripted import scripted

from glmcpu import BusyError, Engine, limits

pytest.importorskip("gradio", reason="the page needs pip install 'glmcpu[web]'")
fastapi, testclient = map(import_module, ("fastapi", "starlette.testclient"))
web, page, words = map(import_module, ("glmcpu.web", "glmcpu.web.page", "glmcpu.web.words"))

# --- words ---


def test_both_languages_say_the_same() -> None:
    assert words.ENGLISH.keys() == words.CHINESE.keys()


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("zh-CN,zh;q=0.9,en;q=0.8", words.CHINESE),
        ("zh", words.CHINESE),
        ("en-US,zh;q=0.5", words.ENGLISH),
        ("de", words.ENGLISH),
        ("", words.ENGLISH),
    ],
)
def test_the_browser_chooses_the_language(accept: str, expected: dict[str, str]) -> None:
    assert words.preferred(accept) is expected


# --- the page and its guard ---


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    app = fastapi.FastAPI()

    @app.post("/upload")
    def upload() -> str:
        return "the server's own"

    with Engine(scripted()[0]) as engine, testclient.TestClient(web.mount(app, lambda: engine)) as client:
        yield client


def parts() -> list[dict[str, Any]]:
    """The components of a page, built as `mount` does."""

    def nobody() -> Engine:
        raise BusyError("still loading")

    async def built() -> Any:
        return page.build(nobody).get_config_file()["components"]

    return list(asyncio.run(built()))


def test_the_sliders_are_the_official_ones() -> None:
    sliders = [part["props"] for part in parts() if part["type"] == "slider"]
    assert [(s["minimum"], s["maximum"], s["value"]) for s in sliders] == [(0, 4096, 2048), (0, 1, 0.7), (0, 1, 0.95)]


def test_conversations_are_found_again_when_the_server_was_started_again() -> None:
    first, second = ([p["props"] for p in parts() if p["type"] == "browserstate"] for _ in range(2))
    kept = [(props["storage_key"], props["secret"]) for props in first]
    assert kept == [(props["storage_key"], props["secret"]) for props in second]
    assert len(kept) == 1


def test_to_build_the_page_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **_: asked.append(args))
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: asked.append(address))
    parts()
    assert not asked


def test_the_page_comes_with_a_policy_that_knows_its_scripts(client: Any) -> None:
    first, second = (client.get("/web/", headers={"accept-encoding": "br, gzip"}) for _ in range(2))
    policy = first.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe-eval" not in policy
    assert first.headers["x-content-type-options"] == "nosniff"
    nonce = policy.partition("'nonce-")[2].partition("'")[0]
    assert first.text.count("<script") == first.text.count(f'<script nonce="{nonce}"') > 0
    assert nonce not in second.text


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/web/gradio_api/upload"),
        ("GET", "/web/gradio_api/upload_progress?upload_id=1"),
        ("GET", "/web/gradio_api/file=/etc/passwd"),
        ("HEAD", "/web/gradio_api/file=/etc/passwd"),
        ("GET", "/web/file=/etc/passwd"),
        ("GET", "/web/gradio_api/proxy=https://example.com/"),
        ("GET", "/web/gradio_api/info"),
        ("GET", "/web/gradio_api/runs"),
        ("GET", "/web/config"),
        ("GET", "/web/monitoring"),
        ("POST", "/web/gradio_api/component_server"),
        ("POST", "/web/gradio_api/call/chat"),
        ("GET", "/web/docs"),
        ("GET", "/web/openapi.json"),
        ("PUT", "/web/"),
    ],
)
def test_nothing_of_gradio_that_the_page_does_not_need_is_there(client: Any, method: str, path: str) -> None:
    assert client.request(method, path).status_code == 404


def test_the_rest_of_the_server_is_left_alone(client: Any) -> None:
    answer = client.post("/upload")
    assert answer.json() == "the server's own"
    assert "content-security-policy" not in answer.headers


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no JSON",
        json.dumps({"data": [{"content": [{"type": "file", "file": {"path": "/etc/passwd"}}]}]}).encode(),
        json.dumps({"data": [[{"type": "component", "component": "image", "constructor_args": {}}]]}).encode(),
        b'{"data": [{"path": "http://127.0.0.1:1/"}]}',
        b"[" * 100_000,
    ],
)
def test_a_message_that_is_not_text_is_refused(client: Any, body: bytes) -> None:
    assert client.post("/web/gradio_api/queue/join", content=body).status_code == 400


def test_a_request_of_any_length_is_refused(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PAGE_REQUEST_BYTES", 100)
    body = json.dumps({"data": ["x" * 100]})
    assert client.post("/web/gradio_api/queue/join", content=body).status_code == 400
