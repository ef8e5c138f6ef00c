"""Answers held to JSON: every one is a document of its schema, whatever the model would have said."""

import json
from typing import Any

import pytest

pytest.importorskip("llguidance", reason="the extra server is not installed")

from serving import chat_ids, demo

from glmcpu import Sampler, UsageError
from glmcpu.server.json_answers import ANY_OBJECT, JsonConstraint

WILD = 2.0
SCHEMAS: dict[str, tuple[Any, type]] = {
    "integer": ({"type": "integer", "minimum": 5, "maximum": 15}, int),
    "multiple": ({"type": "integer", "multipleOf": 12, "minimum": 100, "maximum": 200}, int),
    "boolean": ({"type": "boolean"}, bool),
    "enum": ({"enum": ["red", "好"]}, str),
    "short text": ({"type": "string", "maxLength": 4}, str),
    "array": ({"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3}, list),
    "object": (
        {
            "type": "object",
            "properties": {"a": {"enum": [1, 2]}, "b": {"type": "array", "items": {"enum": ["x"]}, "maxItems": 2}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
        dict,
    ),
}


def answered(schema: Any, seed: int, tokens: int = 200) -> tuple[str, str | None]:
    model = demo()
    constraint = JsonConstraint(model.tokenizer, schema)  # type: ignore[arg-type]
    sampler = Sampler(temperature=WILD, top_p=1, top_k=0, seed=seed)
    said = list(
        model.generate(chat_ids("hello"), sampler=sampler, max_new_tokens=tokens, constraint=constraint, lookup=False)
    )
    return "".join(token.text for token in said), said[-1].finish_reason


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_answer_is_a_document_of_the_schema(name: str) -> None:
    schema, kind = SCHEMAS[name]
    for seed in range(5):
        text, reason = answered(schema, seed)
        document = json.loads(text)
        assert reason == "stop"
        assert type(document) is kind
        if name == "object":
            assert list(document) == ["a", "b"]


def test_any_object_is_one_from_its_first_character() -> None:
    for seed in range(5):
        assert answered(ANY_OBJECT, seed, tokens=10)[0].startswith("{")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "banana"},
        {"$ref": "http://elsewhere/schema"},
        {"$ref": "#"},
        {"type": "string", "minLength": 5, "maxLength": 1},
        {"type": "string", "pattern": "("},
        {"enum": []},
        {"type": "integer", "multipleOf": 999_983},
        {"type": "integer", "multipleOf": 10**300},
        {"allOf": [{"type": "integer", "multipleOf": 997}, {"multipleOf": 991}]},
        {"properties": {"a": {"multipleOf": 0.0001}, "b": {"items": [{"multipleOf": 7}]}}},
    ],
    ids=str,
)
def test_a_schema_that_cannot_be_used_is_refused_at_once_in_one_line(schema: Any) -> None:
    with pytest.raises(UsageError, match="schema") as caught:
        JsonConstraint(demo().tokenizer, schema)  # type: ignore[arg-type]
    assert "\\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_the_end_is_allowed_when_the_document_is_whole_and_not_before() -> None:
    tokenizer = demo().tokenizer
    assert tokenizer is not None
    constraint = JsonConstraint(tokenizer, {"enum": [12]})
    for byte in (b"1", b"2"):
        allowed = constraint.allowed()
        assert tokenizer.eos not in allowed
        constraint.take(next(int(token) for token in allowed if tokenizer.bytes_of(int(token)) == byte))
    assert constraint.allowed().tolist() == [tokenizer.eos]
