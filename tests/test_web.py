"""The web page without a browser: prompts made of messages, answers and figures, and what the guard lets through."""

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import pytest
from scripted import Script, scripted

from glmcpu import BusyError, Engine, limits

pytest.importorskip("gradio", reason="the page needs pip install 'glmcpu[web]'")

import fastapi
from starlette.testclient import TestClient

from glmcpu.web import mount, words
from glmcpu.web.answer import Message, Shown, answers, rounds
from glmcpu.web.page import build

EN = words.ENGLISH


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine(scripted()[0]) as engine:
        yield engine


@pytest.fixture
def script(engine: Engine) -> Iterator[Script]:
    script: Any = engine.model.language_model
    yield script
    script.let_go()


def message(role: str, text: str, **more: Any) -> Message:
    return {"role": role, "content": [{"type": "text", "text": text}], **more}


def conversation(*texts: str) -> list[Message]:
    return [message("assistant" if n % 2 else "user", text) for n, text in enumerate(texts)]


def shown(engine: Any, question: str, messages: list[Message] | None = None, **options: Any) -> list[Shown]:
    async def collect() -> list[Shown]:
        return [one async for one in answers(engine, question, messages or [], EN, **options)]

    return asyncio.run(collect())


def text(one: Shown) -> str:
    return str(one[0][-1]["content"][0]["text"])


def why(one: Shown) -> str:
    return str(one[0][-1]["metadata"]["title"])


# --- the prompt ---


def test_a_conversation_is_pairs_of_question_and_answer() -> None:
    assert rounds(conversation("a", "b", "c", "d")) == [("a", "b"), ("c", "d")]


def test_notes_and_questions_without_an_answer_are_no_rounds() -> None:
    note = message("assistant", "", metadata={"title": "Not now"})
    assert rounds([*conversation("a", "b", "c"), note, *conversation("d", "e"), message("user", "f")]) == [
        ("a", "b"),
        ("d", "e"),
    ]


def test_an_answer_without_a_word_is_no_round() -> None:
    assert rounds(conversation("a", "", "b", "c")) == [("b", "c")]


def test_the_model_reads_the_conversation_in_the_official_form(engine: Engine, script: Script) -> None:
    shown(lambda: engine, "三", conversation("一", "二"))
    assert script.prompts == ["[Round 0]\n问:一\n答:二\n[Round 1]\n问:三\n答:"]


def test_rounds_left_out_are_said(engine: Engine, script: Script) -> None:
    long = conversation(*["word " * 300] * 10)
    figures = shown(lambda: engine, "hello", long)[-1][1]
    assert "oldest 3 rounds were left out" in figures
    assert script.prompts[0].count("[Round") == 3


# --- the answer ---


def test_an_answer_grows_and_its_figures_stand_beside_it(engine: Engine, script: Script) -> None:
    script.answer = "Nice to meet you, 你好,再见!"
    last = shown(lambda: engine, "hello")[-1]
    assert text(last) == "Nice to meet you, 你好，再见！"
    assert "tokens/s" in last[1]
    assert "tokens/s" not in json.dumps(last[0])


def test_the_words_come_one_by_one(engine: Engine, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glmcpu.web.answer.SHOWN_EVERY_S", 0.0)
    script.answer = "one two three"
    grown = [text(one) for one in shown(lambda: engine, "hello")]
    assert grown[0] == "one"
    assert grown[-1] == "one two three"
    assert grown == sorted(grown, key=len)


def test_indented_lines_stay_indented(engine: Engine, script: Script) -> None:
    script.answer = "x\n    y"
    assert text(shown(lambda: engine, "hello")[-1]) == "x\n    y"


def test_the_maximum_length_counts_prompt_and_answer(engine: Engine, script: Script) -> None:
    script.answer = "word " * 500
    assert engine.model.tokenizer is not None
    prompt = len(engine.model.tokenizer.encode("hello"))
    figures = shown(lambda: engine, "hello", max_length=prompt + 7)[-1][1]
    assert "· 7 tokens ·" in figures
    assert "cut at the maximum length" in figures


def test_the_maximum_length_ends_with_the_context(engine: Engine, script: Script) -> None:
    script.answer = "word " * 500
    assert "cut" not in shown(lambda: engine, "hello", max_length=4096)[-1][1]
    engine.model.context = 200
    assert "cut at the maximum length" in shown(lambda: engine, "hello", max_length=4096)[-1][1]


def test_sliders_at_0_take_the_likeliest(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    samplers = []
    submit = engine.submit
    monkeypatch.setattr(engine, "submit", lambda ids, sampler, **more: samplers.append(sampler) or submit(ids, **more))
    for options in ({"temperature": 0.0}, {"top_p": 0.0}, {"temperature": 0.5, "top_p": 0.25}, {}):
        shown(lambda: engine, "hello", **options)
    assert [(s.temperature, s.top_p) for s in samplers] == [(0, 0.7), (0, 0.7), (0.5, 0.25), (0.95, 0.7)]


# --- no answer ---


def test_a_model_that_loads_is_a_note_to_ask_later() -> None:
    def loading() -> Engine:
        raise BusyError("the model is still loading; ask again in a moment")

    (last,) = shown(loading, "hello")
    assert why(last) == "Not now: the model is still loading; ask again in a moment."
    assert rounds([message("user", "hello"), *last[0]]) == []


def test_a_full_engine_is_a_note_to_ask_later(script: Script, engine: Engine) -> None:
    script.hold()
    assert engine.model.tokenizer is not None
    ids = engine.model.tokenizer.encode("hello")
    streams = [engine.submit(ids) for _ in range(engine.places)]
    assert why(shown(lambda: engine, "hello")[-1]).startswith("Not now: ")
    for stream in streams:
        stream.cancel()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max_length": 0}, "maximum length is 0"),
        ({"max_length": 4}, "tokens long"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 2.0}, "top_p"),
    ],
)
def test_what_cannot_be_answered_is_a_note_with_the_reason(
    engine: Engine, options: dict[str, Any], reason: str
) -> None:
    (last,) = shown(lambda: engine, "hello", **options)
    assert why(last).startswith("No answer: ")
    assert reason in why(last)


def test_a_model_without_a_tokenizer_is_a_note(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.model, "tokenizer", None)
    assert "holds no tokenizer" in why(shown(lambda: engine, "hello")[-1])


# --- stopping ---


def test_to_close_an_answer_is_to_cancel_it(script: Script, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glmcpu.web.answer.SHOWN_EVERY_S", 0.0)
    script.answer = "word " * 500
    script.hold()
    script.let("word word word")

    async def leave() -> None:
        growing: AsyncGenerator[Shown, None] = answers(lambda: engine, "hello", [], EN)
        await anext(growing)
        assert engine.state().running == 1
        await growing.aclose()

    asyncio.run(leave())
    script.let_go()
    engine.close(grace_s=60)
    assert engine.state().running == 0
    assert len(script.prompts) == 1


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
def test_the_browser_chooses_the_language(accept: str, expected: words.Words) -> None:
    assert words.preferred(accept) is expected


# --- the page and its guard ---


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    app = fastapi.FastAPI()

    @app.post("/upload")
    def upload() -> str:
        return "the server's own"

    with Engine(scripted()[0]) as engine, TestClient(mount(app, lambda: engine), base_url="http://127.0.0.1") as client:
        yield client


def test_the_sliders_are_the_official_ones(engine: Engine) -> None:
    async def parts() -> list[dict[str, Any]]:
        return build(lambda: engine).get_config_file()["components"]  # type: ignore[no-any-return]

    sliders = [part["props"] for part in asyncio.run(parts()) if part["type"] == "slider"]
    assert [(s["minimum"], s["maximum"], s["value"]) for s in sliders] == [(0, 4096, 2048), (0, 1, 0.7), (0, 1, 0.95)]


def test_to_build_the_page_asks_nobody(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **_: asked.append(args))
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: asked.append(address))
    mount(fastapi.FastAPI(), lambda: engine)
    assert not asked


def test_the_page_comes_with_a_policy_that_knows_its_scripts(client: TestClient) -> None:
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
def test_nothing_of_gradio_that_the_page_does_not_need_is_there(client: TestClient, method: str, path: str) -> None:
    assert client.request(method, path).status_code == 404


def test_the_rest_of_the_server_is_left_alone(client: TestClient) -> None:
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
def test_a_message_that_is_not_text_is_refused(client: TestClient, body: bytes) -> None:
    assert client.post("/web/gradio_api/queue/join", content=body).status_code == 400


def test_a_request_of_any_length_is_refused(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PAGE_REQUEST_BYTES", 100)
    body = json.dumps({"data": ["x" * 100]})
    assert client.post("/web/gradio_api/queue/join", content=body).status_code == 400
