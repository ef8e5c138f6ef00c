"""Every field of a request: what is refused, under which name, and what a value means."""

from collections.abc import Iterator
from typing import Any

import pytest
from serving import CHAT, HELLO, TEXT, Local, error_of, local

from glmcpu import Sampler, limits
from glmcpu.server.fields import HARMLESS, REFUSED, ChatRequest, CompletionRequest, OfficialRequest, ignored

MISSING: Any = object()
SCHEMA = "response_format.json_schema.schema"


@pytest.fixture(scope="module")
def client() -> Iterator[Local]:
    with local() as found:
        yield found


# (field, value, the parameter complained of)
EITHER: list[tuple[str, Any, str | None]] = [
    *[("max_tokens", value, "max_tokens") for value in (0, -1, 1.5, 5.0, "5", 10**9, True, [5])],
    *[("n", value, "n") for value in (0, -1, limits.CHOICES + 1, 10**6, "1")],
    *[("temperature", value, "temperature") for value in (-0.1, 2.1, "hot", True)],
    *[("top_p", value, "top_p") for value in (0, -1, 1.1)],
    *[("top_k", value, "top_k") for value in (-1, 0.5, 10**9)],
    *[("repetition_penalty", value, "repetition_penalty") for value in (0, -1, 101)],
    *[(name, value, name) for name in ("presence_penalty", "frequency_penalty") for value in (-2.1, 2.1, "1")],
    *[("seed", value, "seed") for value in (-1, 2**63, 1.5, "7")],
    ("seed", 2**70, None),  # more digits than JSON may have here
    *[("stop", value, "stop") for value in ("", "x" * 257, 5, ["a"] * 5, {"a": 1})],
    *[("stop", value, "stop[1]") for value in (["a", ""], ["a", 5], ["a", "x" * 257])],
    *[("logit_bias", value, "logit_bias") for value in ([1], {"x": 1}, {"-1": 1}, {"3439": 1}, {"1.0": 1}, {"²": 1})],
    *[("logit_bias", {"5": value}, "logit_bias.5") for value in (101, -101, "1", None)],
    ("logit_bias", {str(n): 1 for n in range(limits.BIASED_IDS + 1)}, "logit_bias"),
    *[("stream", value, "stream") for value in ("yes", 1)],
    ("stream_options", {"include_usage": True}, "stream_options"),
    *[("model", value, "model") for value in (5, "x" * 2000)],
    *[(name, {"a": 1}, name) for name in REFUSED],
    ("max_token", 5, "max_token"),  # slips of the pen
    ("temprature", 0, "temprature"),
    ("Top_P", 0.5, "Top_P"),
    ("stopp", "x", "stopp"),
]
CHATS: list[tuple[str, Any, str | None]] = [
    *[("messages", value, "messages") for value in (MISSING, None, [], "hello", {}, HELLO * 1025)],
    *[("messages", [*HELLO, value], "messages[1]") for value in (None, "x", 5, [])],
    *[("messages", [{"role": role, "content": "x"}], "messages[0].role") for role in ("tool", "function", "", 5)],
    ("messages", [{"content": "x"}], "messages[0].role"),
    *[("messages", [{"role": "user", "content": text}], "messages[0].content") for text in (None, 5, {}, "", " ", [])],
    ("messages", [{"role": "user"}], "messages[0].content"),
    ("messages", [{"role": "user", "content": [5]}], "messages[0].content[0]"),
    ("messages", [{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
    (
        "messages",
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        "messages[0].content[0].type",
    ),
    ("messages", [{"role": "assistant", "content": "x"}], "messages[0].role"),
    *[("max_completion_tokens", value, "max_completion_tokens") for value in (0, "5", 10**9)],
    *[("logprobs", value, "logprobs") for value in (1, "yes")],
    *[("top_logprobs", value, "top_logprobs") for value in (-1, 21, 5)],
    *[("response_format", value, "response_format") for value in ("json", 5, [])],
    ("response_format", {}, "response_format.type"),
    ("response_format", {"type": "xml"}, "response_format.type"),
    ("response_format", {"type": "json_schema"}, "response_format.json_schema"),
    ("response_format", {"type": "json_schema", "json_schema": {}}, SCHEMA),
    *[
        ("response_format", {"type": "json_schema", "json_schema": {"schema": value}}, SCHEMA)
        for value in (5, None, "x", {"type": "banana"}, {"$ref": "http://x"}, {"$ref": "#"}, {"enum": []}, True, False)
    ],
]  # fmt: skip
TEXTS: list[tuple[str, Any, str | None]] = [
    *[("prompt", value, "prompt") for value in (MISSING, None, "", [], 5, {}, ["a"] * (limits.CHOICES + 1), [5, 6])],
    *[("prompt", value, "prompt[0]") for value in ([[]], [["a"]], [True], [-1], [10**7], [1.5], [""])],
    *[("prompt", value, "prompt[1]") for value in (["a", ""], ["a", 5], [5, "a"], [5, 99_999])],
    *[("logprobs", value, "logprobs") for value in (-1, 21, True, "5")],
]
ROWS = [(CHAT, {"messages": HELLO}, row) for row in EITHER + CHATS] + [
    (TEXT, {"prompt": "hello"}, row) for row in EITHER + TEXTS
]


@pytest.mark.parametrize(("path", "fields", "row"), ROWS, ids=[f"{path} {row[0]}" for path, _, row in ROWS])
def test_a_wrong_value_is_refused_under_its_name(
    path: str, fields: dict[str, Any], row: tuple[str, Any, str | None], client: Local
) -> None:
    name, value, param = row
    asked = {"max_tokens": 1, **fields, name: value}
    response = client.post(path, {key: item for key, item in asked.items() if item is not MISSING})
    error = error_of(response)
    assert (response.status_code, error["param"]) == (400, param), error
    assert error["type"] == "invalid_request_error"
    assert "function-" not in error["message"]  # as pydantic calls its validators


@pytest.mark.parametrize("name", [name for name, idle in REFUSED.items() if idle])
def test_what_is_not_supported_may_be_asked_not_to_be(name: str, client: Local) -> None:
    for value in (*REFUSED[name], None):
        assert client.post(CHAT, {"messages": HELLO, "max_tokens": 1, name: value}).status_code == 200


@pytest.mark.parametrize("name", [*sorted(HARMLESS), "x_new_field", "extra_body"])
def test_what_changes_no_answer_is_ignored(name: str, client: Local) -> None:
    assert client.post(TEXT, {"prompt": "hello", "max_tokens": 1, name: "x"}).status_code == 200


@pytest.mark.parametrize(
    "name",
    ["max_tokens", "temperature", "seed", "stop", "logit_bias", "n", "stream", "stream_options", "model", "top_p"],
)
def test_null_is_not_given(name: str, client: Local) -> None:
    assert client.post(TEXT, {"prompt": "hello", "max_tokens": 1, name: None}).status_code == 200


@pytest.mark.parametrize("path", [CHAT, TEXT, "/"])
def test_more_fields_than_anybody_sends_are_refused_before_names_are_compared(path: str, client: Local) -> None:
    response = client.post(path, {f"field_{n}": n for n in range(limits.FIELDS + 1)})
    assert (response.status_code, error_of(response)["param"]) == (400, None)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (TEXT, {"prompt": [1.5] * 100_000}),
        (CHAT, {"messages": [{"role": "user", "content": [5] * 100_000}]}),
        ("/", {"prompt": "x", "history": [5] * 100_000}),
        ("/detokenize", {"tokens": ["x"] * 80_000}),
    ],
)
def test_of_many_wrong_values_the_first_is_named(path: str, fields: Any, client: Local) -> None:
    assert error_of(client.post(path, fields))["param"].endswith("[0]")


def test_defaults_are_those_of_the_official_chat() -> None:
    assert ChatRequest.model_validate({"messages": HELLO}).sampler() == Sampler()
    assert OfficialRequest(prompt="x").model_dump() == {
        "prompt": "x",
        "history": [],
        "max_length": 2048,
        "top_p": 0.7,
        "temperature": 0.95,
    }


def test_fields_reach_the_sampler() -> None:
    given = {"temperature": 0.5, "top_p": 0.25, "top_k": 3, "repetition_penalty": 1.5, "presence_penalty": -1.0}
    asked = CompletionRequest.model_validate(
        {"prompt": "x", **given, "frequency_penalty": 2, "seed": 5, "logit_bias": {"7": -100}}
    )
    expected = Sampler(**given, frequency_penalty=2.0, seed=8, logit_bias={7: -100})  # type: ignore[arg-type]
    assert asked.sampler(3) == expected


def test_a_stop_is_one_or_a_list() -> None:
    assert CompletionRequest(prompt="x", stop="a").stops() == ["a"]
    assert CompletionRequest(prompt="x", stop=["a", "b"]).stops() == ["a", "b"]
    assert CompletionRequest(prompt="x").stops() == []


def test_ignored_fields_are_told_to_the_log() -> None:
    body = {"prompt": "x", "zeta": 1, "alpha": 2, "user": "u", "tools": []}
    assert ignored(body, CompletionRequest) == ["alpha", "zeta"]
