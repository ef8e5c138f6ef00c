"""Doubtful JSON is refused with one sentence; plain JSON means what it means to the standard parser."""

import json

import pytest

from glmcpu import limits
from glmcpu.errors import DataError
from glmcpu.strict_json import parse, parse_line

REFUSED = {
    "empty": (b"", "not valid JSON"),
    "cut": (b'{"a": 1', "not valid JSON"),
    "two values": (b"{} {}", "not valid JSON"),
    "byte order mark": (b"\xef\xbb\xbf{}", "not valid JSON"),
    "utf-16": ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
    "latin-1": (b'{"\xe9": 1}', "not UTF-8"),
    "raw surrogate": (b'"\xed\xa0\x80"', "not UTF-8"),
    "duplicate key": (b'{"a": 1, "b": 2, "a": 3}', "duplicate key 'a'"),
    "duplicate by escape": (rb'{"a": 1, "\u0061": 2}', "duplicate key 'a'"),
    "duplicate inside": (b'{"x": {"dtype": 1, "dtype": 2}}', "duplicate key 'dtype'"),
    "NaN": (b'{"a": NaN}', "holds NaN"),
    "Infinity": (b"[-Infinity]", "holds -Infinity"),
    "huge float": (b"[1e999]", "out of range"),
    "long float": (b"[0." + b"1" * 100_000 + b"]", "out of range"),
    "long integer": (b"[" + b"9" * 100_000 + b"]", "out of range"),
    "minus zero": (b"[-0]", "out of range"),
    "high surrogate": (rb'"\ud83d"', "half a surrogate pair"),
    "low surrogate": (rb'"\ude00\ud83d"', "half a surrogate pair"),
    "surrogates split by a backslash": (rb'"\ud83d\\\ude00"', "half a surrogate pair"),
    "control character": (b'"a\nb"', "not valid JSON"),
    "deep": (b"[" * (limits.JSON_DEPTH + 1) + b"]" * (limits.JSON_DEPTH + 1), "nested deeper"),
    "very deep": (b"[" * 100_000, "nested deeper"),
    "deep behind an escaped quote": (rb'["\"", ' + b"[" * 100_000, "nested deeper"),
    "too many values": (b"[" + b"1," * limits.JSON_TOKENS + b"1]", "at most 500,000"),
    "eight megabytes of quotes": (b'"' * (8 << 20), "at most 500,000"),
    "eight megabytes of backslashes": (b'"' + b"\\" * (8 << 20), "not valid JSON"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_doubtful_text_is_refused_with_one_line_that_names_the_file(case: str) -> None:
    data, fragment = REFUSED[case]
    with pytest.raises(DataError) as caught:
        parse(data, "model/config.json")
    message = str(caught.value)
    assert message.startswith("model/config.json: ")
    assert fragment in message
    assert len(message) <= 300
    assert message.isprintable()


def test_plain_json_equals_the_standard_parser() -> None:
    numbers = '"n": [0, -2, 3.5e-1, 18446744073709551615, true, null]'
    text = "{" + numbers + r', "emoji \ud83d\ude00 \"[[[\" \\ud800": {"": "文"}}'
    assert parse(text.encode(), "x") == json.loads(text)


def test_nesting_to_the_limit_is_accepted() -> None:
    n = limits.JSON_DEPTH
    assert parse(b"[" * n + b"]" * n, "x") == json.loads("[" * n + "]" * n)


def test_brackets_inside_strings_are_not_depth() -> None:
    assert parse(b'"' + b"[" * 1000 + b'"', "x") == "[" * 1000


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"a": b}', 'x: line 7: not valid JSON at column 7 (Expecting value); expected {"a": 1}, one object a line'),
        ('{"a": "你"}'.encode("gbk"), "x: line 7: byte 8 is not UTF-8 text (0xc4); save the file as UTF-8"),
        (b"[1, 2]", 'x: line 7: is a list of 2; expected an object {"a": 1}'),
        (b'"a"', 'x: line 7: is a text; expected an object {"a": 1}'),
        (b"null", 'x: line 7: is null; expected an object {"a": 1}'),
        (b"1", 'x: line 7: is a number; expected an object {"a": 1}'),
        (b'{"a": 1, "a": 2}', "x: line 7: duplicate key 'a'; expected every key once"),
    ],
)
def test_a_line_that_is_no_object_is_refused_with_its_place(line: bytes, words: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_line(line, "x: line 7", '{"a": 1}')
    assert str(caught.value) == words


def test_a_line_that_is_an_object_is_that_object() -> None:
    assert parse_line(b' {"a": [1, null]} ', "x", "{}") == {"a": [1, None]}
