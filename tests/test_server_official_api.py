"""POST / as the official api.py: its fields, defaults and answer, without its faults."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from serving import Local, chat_ids, demo, error_of, greedy, local, solo

from glmcpu import Sampler
from glmcpu.server import official_api

HISTORY = [["My name is Bob.", "Nice to meet you, Bob!"]]


@pytest.fixture(scope="module")
def client() -> Iterator[Local]:
    with local() as found:
        yield found


def test_an_answer_is_the_official_ones(client: Local) -> None:
    body = client.post("/", {"prompt": "你好", "history": [], "temperature": 0}).json()
    assert list(body) == ["response", "history", "status", "time"]
    assert (body["response"], body["status"]) == (greedy("你好"), 200)
    assert body["history"] == [["你好", greedy("你好")]]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", body["time"])


def test_the_history_is_read_and_grows(client: Local) -> None:
    body = client.post("/", {"prompt": "What is my name?", "history": HISTORY, "temperature": 0}).json()
    assert body["response"] == solo("What is my name?", HISTORY, temperature=0.0)
    assert body["history"] == [*HISTORY, ["What is my name?", body["response"]]]


@pytest.mark.parametrize("history", [None, [], [[]]])
def test_no_history_has_several_forms(history: Any, client: Local) -> None:
    body = client.post("/", {"prompt": "hello", "history": history, "temperature": 0}).json()
    assert body["history"] == [["hello", greedy("hello")]]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, Sampler()),
        ({"temperature": None, "top_p": None, "max_length": None}, Sampler()),
        ({"top_p": 0, "max_length": 0}, Sampler()),
        ({"temperature": 0}, Sampler(temperature=0)),
        ({"temperature": 3, "top_p": 0.5}, Sampler(temperature=3, top_p=0.5)),
    ],
    ids=str,
)
def test_defaults_are_the_official_ones_and_0_is_a_temperature(
    fields: dict[str, Any], expected: Sampler, client: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def sampler(**options: Any) -> Sampler:
        made.append(Sampler(**options))
        return made[-1]

    monkeypatch.setattr(official_api, "Sampler", sampler)
    assert client.post("/", {"prompt": "hello", **fields}).status_code == 200
    assert made == [expected]


def test_max_length_counts_prompt_and_answer(client: Local) -> None:
    length = len(chat_ids("hello")) + 4
    body = client.post("/", {"prompt": "hello", "max_length": length, "temperature": 0}).json()
    assert body["response"] == solo("hello", temperature=0.0, max_length=length)
    assert len(body["response"]) < len(greedy("hello"))
    response = client.post("/", {"prompt": "hello", "max_length": 3})
    assert (response.status_code, error_of(response)["param"]) == (400, "prompt")


def test_rounds_that_do_not_fit_are_left_out_and_counted(client: Local) -> None:
    history = [["hello " * 20, "hello " * 20]] * 20
    response = client.post("/", {"prompt": "hello", "history": history, "temperature": 0})
    with pytest.warns(match="left out"):
        expected, _ = demo().chat("hello", history, temperature=0.0)
    assert response.json()["response"] == expected
    assert 0 < int(response.headers["x-dropped-rounds"]) < 20
    assert len(response.json()["history"]) == 21
    assert "x-dropped-rounds" not in client.post("/", {"prompt": "hello"}).headers


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": "hello " * 600}, "prompt"),
        ({"history": "x"}, "history"),
        ({"history": [["a"]]}, "history[0]"),
        ({"history": [["a", "b"], ["a", "b", "c"]]}, "history[1]"),
        ({"history": [["a", "b"], []]}, "history[1]"),
        ({"history": [["a", None]]}, "history[0][1]"),
        ({"history": [[1, "a"]]}, "history[0][0]"),
        ({"max_length": 10**9}, "max_length"),
        ({"max_length": -1}, "max_length"),
        ({"max_length": 5.5}, "max_length"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_p": -1}, "top_p"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
    ],
    ids=str,
)
def test_a_wrong_value_is_refused_in_the_official_shape(fields: dict[str, Any], param: str, client: Local) -> None:
    response = client.post("/", {"prompt": "hello", **fields})
    assert response.status_code == response.json()["status"] == 400
    assert error_of(response)["param"] == param
