"""The two forms of an answer: chunks put together are the whole, and probabilities are the model's."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
from serving import CHAT, HELLO, TEXT, Local, chat_ids, demo, events, local

ASKED = {"max_tokens": 30, "temperature": 0}


@pytest.fixture(scope="module")
def client() -> Iterator[Local]:
    with local() as found:
        yield found


def chunks(client: Local, path: str, **fields: Any) -> list[dict[str, Any]]:
    response = client.post(path, {**ASKED, **fields, "stream": True})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-store"
    *found, last = events(response.text)
    assert last == "[DONE]"
    assert "[DONE]" not in found
    return found


@pytest.mark.parametrize("n", [1, 3])
def test_a_chat_in_chunks_is_the_whole_one(n: int, client: Local) -> None:
    fields = {
        "messages": [{"role": "user", "content": "你好"}],
        "n": n,
        "seed": 5,
        "temperature": 1.0,
        "logprobs": True,
    }
    whole = client.post(CHAT, {**ASKED, **fields}).json()
    found = chunks(client, CHAT, **fields)
    assert {chunk["object"] for chunk in found} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in found}) == 1
    assert [chunk["choices"][0]["delta"] for chunk in found[:n]] == [
        {"role": "assistant", "content": "", "refusal": None}
    ] * n
    for place, choice in enumerate(whole["choices"]):
        own = [chunk["choices"][0] for chunk in found if chunk["choices"][0]["index"] == place]
        assert "".join(each["delta"].get("content", "") for each in own) == choice["message"]["content"]
        assert [each["finish_reason"] for each in own] == [None] * (len(own) - 1) + [choice["finish_reason"]]
        shown = [token for each in own if each["logprobs"] for token in each["logprobs"]["content"]]
        assert shown == choice["logprobs"]["content"]


def test_a_text_in_chunks_is_the_whole_one(client: Local) -> None:
    fields = {"prompt": ["hello", "My name is"], "logprobs": 2}
    whole = client.post(TEXT, {**ASKED, **fields}).json()
    found = chunks(client, TEXT, **fields)
    for place, choice in enumerate(whole["choices"]):
        own = [chunk["choices"][0] for chunk in found if chunk["choices"][0]["index"] == place]
        assert "".join(each["text"] for each in own) == choice["text"]
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            assert [item for each in own if each["logprobs"] for item in each["logprobs"][name]] == choice["logprobs"][
                name
            ]


def test_probabilities_are_the_models_own(client: Local) -> None:
    fields = {"messages": HELLO, "logprobs": True, "top_logprobs": 3, **ASKED}
    shown = client.post(CHAT, fields).json()["choices"][0]["logprobs"]["content"]
    tokens = list(demo().generate(chat_ids("hello"), max_new_tokens=30, top=3))
    assert tokens[-1].finish_reason == "stop"
    assert [token["logprob"] for token in shown] == [token.logprob for token in tokens[:-1]]  # the end is no text
    for token in shown:
        assert token["top_logprobs"][0] == {name: token[name] for name in ("token", "logprob", "bytes")}
        assert bytes(token["bytes"]).decode("utf-8", "replace") == token["token"]
        assert sum(math.exp(each["logprob"]) for each in token["top_logprobs"]) <= 1.000001
    assert b"".join(bytes(token["bytes"]) for token in shown).decode().lstrip() == "".join(t.text for t in tokens)


def test_offsets_of_a_text_are_where_its_tokens_stand(client: Local) -> None:
    choice = client.post(TEXT, {**ASKED, "prompt": "hello", "logprobs": 0}).json()["choices"][0]
    said = "".join(choice["logprobs"]["tokens"])
    for token, offset in zip(choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"], strict=True):
        assert said[offset : offset + len(token)] == token


def test_probabilities_come_when_asked_for_only(client: Local) -> None:
    assert client.post(CHAT, {**ASKED, "messages": HELLO}).json()["choices"][0]["logprobs"] is None
    assert client.post(TEXT, {**ASKED, "prompt": "hello"}).json()["choices"][0]["logprobs"] is None


@pytest.mark.parametrize(("path", "fields"), [(CHAT, {"messages": HELLO}), (TEXT, {"prompt": "hello"})])
def test_the_count_of_tokens_comes_last_and_when_asked_for(path: str, fields: dict[str, Any], client: Local) -> None:
    whole = client.post(path, {**ASKED, **fields}).json()["usage"]
    *others, last = chunks(client, path, **fields, stream_options={"include_usage": True})
    assert (last["choices"], last["usage"]) == ([], whole)
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in others)
    assert all("usage" not in chunk for chunk in chunks(client, path, **fields))


def test_times_come_with_the_last_chunk(client: Local) -> None:
    found = chunks(client, CHAT, messages=HELLO)
    assert [("timings" in chunk) for chunk in found] == [False] * (len(found) - 1) + [True]
    assert (
        found[-1]["timings"]["predicted_n"]
        == client.post(CHAT, {**ASKED, "messages": HELLO}).json()["usage"]["completion_tokens"]
    )
