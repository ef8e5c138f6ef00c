"""OpenAI's protocol: every answer is the one the model gives alone, and ends for the reason it ended."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from serving import (
    CHAT,
    HELLO,
    SEEDED,
    SEEDED_SAMPLER,
    TEXT,
    Gate,
    Local,
    chat_ids,
    demo,
    endless,
    error_of,
    events,
    greedy,
    live,
    local,
    long_demo,
    solo,
    started,
)

from glmcpu import Engine, Sampler
from glmcpu.chat import SYSTEM_ANSWER
from glmcpu.generate import Options
from glmcpu.server import choices
from glmcpu.server.app import Settings, build
from glmcpu.server.service import Service
from glmcpu.tokenizers.prompt import process_response

QUESTIONS = ("hello", "What is 45 + 38?", "把苹果翻译成英文", "你好", "repeat: alpha beta gamma alpha beta gamma")


@pytest.fixture(scope="module")
def client() -> Iterator[Local]:
    with local() as found:
        yield found


def say(client: Local, question: str, **fields: Any) -> dict[str, Any]:
    response = client.post(CHAT, {"messages": [{"role": "user", "content": question}], **fields})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def content(reply: dict[str, Any], n: int = 0) -> str:
    return str(reply["choices"][n]["message"]["content"])


def tokens(question: str, **options: Any) -> Any:
    options = {"max_new_tokens": demo().context - len(chat_ids(question)), "post": process_response, **options}
    return list(demo().generate(chat_ids(question), **options))


# --- the same answers ---


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_chat_says_what_chat_says(question: str, client: Local) -> None:
    reply = say(client, question, temperature=0)
    assert content(reply) == greedy(question)
    assert content(say(client, question, **SEEDED)) == solo(question, **SEEDED)
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert reply["usage"] == {
        "prompt_tokens": len(chat_ids(question)),
        "completion_tokens": len(tokens(question)),
        "total_tokens": len(chat_ids(question)) + len(tokens(question)),
    }


def test_rounds_and_a_system_text_are_read(client: Local) -> None:
    said = [
        {"role": "system", "content": "You are Bob."},
        {"role": "user", "content": "My name is Ann."},
        {"role": "assistant", "content": "Nice to meet you, Ann!"},
        {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "my name?"}]},
    ]
    history = [("You are Bob.", SYSTEM_ANSWER), ("My name is Ann.", "Nice to meet you, Ann!")]
    reply = client.post(CHAT, {"messages": said, "temperature": 0}).json()
    assert content(reply) == solo("What is my name?", history, temperature=0.0)


def test_choices_of_one_seed_are_those_of_the_seeds_that_follow(client: Local) -> None:
    reply = say(client, "hello", n=3, **SEEDED)
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]
    assert [content(reply, n) for n in range(3)] == [solo("hello", **{**SEEDED, "seed": 7 + n}) for n in range(3)]


def test_without_a_seed_answers_differ(client: Local) -> None:
    assert len({content(say(client, "hello", temperature=2, top_p=1, top_k=0, max_tokens=20)) for _ in range(3)}) > 1


@pytest.mark.parametrize("prompt", ["Hello, I am", "问：你好\n\n答："])
def test_a_text_is_continued_as_the_model_does(prompt: str, client: Local) -> None:
    model = demo()
    assert model.tokenizer is not None
    ids = model.tokenizer.encode(prompt)
    for fields, sampler in (({"temperature": 0}, None), (SEEDED, SEEDED_SAMPLER)):
        expected = "".join(t.text for t in model.generate(ids, sampler=sampler, max_new_tokens=40))
        for given in (prompt, ids):
            reply = client.post(TEXT, {"prompt": given, "max_tokens": 40, **fields}).json()
            assert reply["choices"][0]["text"] == expected


def test_several_prompts_have_their_answers_in_order(client: Local) -> None:
    prompts = ["hello", "My name is"]
    fields: dict[str, Any] = {"max_tokens": 10, **SEEDED}
    reply = client.post(TEXT, {"prompt": prompts, "n": 2, **fields}).json()
    alone = [client.post(TEXT, {"prompt": prompt, "n": 2, **fields}).json() for prompt in prompts]
    assert [each["text"] for each in reply["choices"]] == [each["text"] for one in alone for each in one["choices"]]
    assert reply["usage"]["prompt_tokens"] == sum(one["usage"]["prompt_tokens"] for one in alone)
    assert reply["usage"]["completion_tokens"] == sum(one["usage"]["completion_tokens"] for one in alone)


def test_many_at_once_have_each_their_own() -> None:
    found: dict[int, str] = {}

    def ask(n: int) -> None:
        options = {"temperature": 0} if n % 2 else {**SEEDED, "seed": n}
        asked = {"messages": [{"role": "user", "content": QUESTIONS[n % 5]}], **options}
        found[n] = content(httpx.post(f"{server.url}{CHAT}", json=asked, timeout=60).json())

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(15)]
    with live() as server:  # with one event loop, as the application expects
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {
        n: greedy(QUESTIONS[n % 5]) if n % 2 else solo(QUESTIONS[n % 5], **{**SEEDED, "seed": n}) for n in range(15)
    }


# --- options ---


def test_answers_end_where_they_are_told_to(client: Local) -> None:
    whole = greedy("hello")
    assert whole.startswith("Hello! I am a")
    for stop in ("I am", ["xyz", "I am"]):
        reply = say(client, "hello", temperature=0, stop=stop)
        assert (content(reply), reply["choices"][0]["finish_reason"]) == (whole.partition("I am")[0], "stop")
    for name in ("max_tokens", "max_completion_tokens"):
        reply = say(client, "hello", temperature=0, **{name: 3})
        assert reply["choices"][0]["finish_reason"] == "length"
        assert reply["usage"]["completion_tokens"] == 3
        assert whole.startswith(content(reply))


@pytest.mark.parametrize(
    "options",
    [
        {"presence_penalty": 2.0, "frequency_penalty": 1.5},
        {"repetition_penalty": 1.8},
        {"temperature": 1.5, "top_p": 0.5, "top_k": 5, "seed": 1},
        {"logit_bias": {3100: -100.0}, "max": 60},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_are_the_samplers(options: dict[str, Any], client: Local) -> None:
    options = {"temperature": 0.0, **options}
    longest = options.pop("max", 40)
    expected = "".join(t.text for t in tokens("hello", sampler=Sampler(**options), max_new_tokens=longest))
    if "logit_bias" in options:
        options["logit_bias"] = {str(key): bias for key, bias in options["logit_bias"].items()}
    assert content(say(client, "hello", max_tokens=longest, **options)) == expected


def test_context_ends_an_answer(client: Local) -> None:
    reply = client.post(CHAT, endless(demo())).json()
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["usage"]["total_tokens"] == demo().context


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_what_does_not_fit_the_context_is_refused_to_the_token(path: str, client: Local) -> None:
    ids = chat_ids("hello") if path == CHAT else demo().tokenizer.encode("hello")  # type: ignore[union-attr]
    fields: dict[str, Any] = {"messages": HELLO} if path == CHAT else {"prompt": "hello"}
    room = demo().context - len(ids)
    assert client.post(path, {**fields, "max_tokens": room, "stop": ["e"]}).status_code == 200
    response = client.post(path, {**fields, "max_tokens": room + 1})
    error = error_of(response)
    name = next(iter(fields))
    assert (response.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", name)
    assert f"{len(ids):,}" in error["message"]
    assert f"{demo().context:,}" in error["message"]
    long = "hello " * 600
    response = client.post(
        path, {"messages": [{"role": "user", "content": long}]} if path == CHAT else {"prompt": long}
    )
    assert error_of(response)["code"] == "context_length_exceeded"


ANSWER_SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "integer", "minimum": 0, "maximum": 99}, "sure": {"type": "boolean"}},
    "required": ["answer", "sure"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("stream", [False, True])
def test_answers_are_held_to_a_schema(stream: bool, client: Local) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": ANSWER_SCHEMA}}
    fields = {"messages": HELLO, "response_format": wanted, "n": 2, "stream": stream, **SEEDED}
    response = client.post(CHAT, fields)
    if stream:
        said = ["", ""]
        for chunk in events(response.text)[:-1]:
            said[chunk["choices"][0]["index"]] += chunk["choices"][0]["delta"].get("content", "")
    else:
        said = [content(response.json(), n) for n in range(2)]
    for text in said:
        document = json.loads(text)
        assert list(document) == ["answer", "sure"]
        assert 0 <= document["answer"] <= 99


def test_any_json_object_and_plain_text_can_be_asked_for(client: Local) -> None:
    reply = say(client, "hello", temperature=0, max_tokens=30, response_format={"type": "json_object"})
    assert content(reply).startswith("{")
    assert content(say(client, "hello", temperature=0, response_format={"type": "text"})) == greedy("hello")


def test_a_schema_has_a_bound(client: Local) -> None:
    wanted = {"type": "json_schema", "json_schema": {"schema": {"enum": ["x" * 1000 + str(n) for n in range(70)]}}}
    response = client.post(CHAT, {"messages": HELLO, "response_format": wanted})
    assert error_of(response)["param"] == "response_format.json_schema.schema"


def test_the_model_has_a_name(client: Local) -> None:
    (about,) = client.get("/v1/models").json()["data"]
    assert (about["id"], about["object"]) == ("demo", "model")
    assert client.get("/v1/models/demo").json() == about
    assert say(client, "hello", model="demo", temperature=0)["model"] == "demo"
    for response in (client.get("/v1/models/other"), client.post(CHAT, {"messages": HELLO, "model": "other"})):
        assert (response.status_code, error_of(response)["code"]) == (404, "model_not_found")


# --- when things go wrong ---


@pytest.fixture
def gated(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Gate, Service, Local]]:
    gate = Gate(demo())
    with monkeypatch.context() as patched:
        patched.setattr(demo(), "language_model", gate)
        service = started(lambda: Engine(demo(), parallel=1, waiting=1))
    yield gate, service, Local(build(service, Settings()))
    gate.open.set()
    service.close()


def test_a_full_queue_is_told_to_come_again(gated: tuple[Gate, Service, Local]) -> None:
    gate, service, client = gated
    gate.open.clear()
    options: Options = {"max_new_tokens": 5}
    streams = service.submit([(chat_ids("hello"), options)] * 2)
    for stream in (False, True):
        response = client.post(CHAT, {"messages": HELLO, "stream": stream})
        assert (response.status_code, error_of(response)["code"]) == (429, "server_busy")
        assert int(response.headers["retry-after"]) >= 1
    for each in streams:
        each.cancel()


def test_a_failing_engine_fails_that_request_alone(
    gated: tuple[Gate, Service, Local], caplog: pytest.LogCaptureFixture
) -> None:
    gate, _, client = gated
    for _ in range(3):
        gate.error = ZeroDivisionError("secret")
        response = client.post(CHAT, {"messages": HELLO, "temperature": 0})
        assert (response.status_code, error_of(response)["code"]) == (500, "internal_error")
        assert "secret" not in response.text
        assert f"request {response.headers['x-request-id']} failed" in caplog.text
        gate.error = None
        assert content(client.post(CHAT, {"messages": HELLO, "temperature": 0}).json()) == greedy("hello")


def test_a_failure_in_a_stream_is_an_event_and_no_done_follows(gated: tuple[Gate, Service, Local]) -> None:
    gate, _, client = gated
    gate.error = ZeroDivisionError("secret")
    found = events(client.post(CHAT, {"messages": HELLO, "stream": True}).text)
    assert found[-1]["error"]["code"] == "internal_error"
    assert "[DONE]" not in found
    assert "secret" not in str(found)


def test_line_ends_of_all_kinds_stay_inside_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "a\n\ndata: [DONE]\n\n\u2028\u2029\x85\x00\r\n</script>"

    async def one(streams: Any, record: Any) -> Any:
        from glmcpu import Token

        streams[0].cancel()
        yield 0, Token(5, said, 0.0, "stop")

    monkeypatch.setattr(choices, "tokens_of", one)
    with local() as client:
        text = client.post(TEXT, {"prompt": "hello", "stream": True}).text
    assert len(text.splitlines()) == text.count("\n")
    assert events(text)[0]["choices"][0]["text"] == said
    assert events(text)[-1] == "[DONE]"


def test_while_the_model_loads_requests_are_told_to_come_again() -> None:
    go = threading.Event()
    service = Service("demo", lambda: (go.wait(), Engine(long_demo()))[1])
    service.start()
    client = Local(build(service, Settings()))
    for response in (
        client.post(CHAT, {"messages": HELLO}),
        client.post(TEXT, {"prompt": "x"}),
        client.post("/tokenize", {"content": "x"}),
    ):
        assert (response.status_code, error_of(response)["code"]) == (503, "model_loading")
        assert int(response.headers["retry-after"]) >= 1
    assert client.get("/v1/models").status_code == 200
    assert client.get("/health").status_code == 503
    go.set()
    service._loader.join()
    assert client.get("/health").json()["status"] == "ok"
    service.close()
    assert error_of(client.post(CHAT, {"messages": HELLO}))["code"] == "shutting_down"
