"""What a line asks for: every key, every default, and one sentence for each way a line can be wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_talkers import loaded

from glmcpu import limits
from glmcpu.batch_lines import KEYS, Line, Options, Request, identity, lines, parse, request
from glmcpu.errors import DataError, UsageError
from glmcpu.sampling import Sampler


def written(folder: Path, data: bytes) -> Path:
    path = folder / "in.jsonl"
    path.write_bytes(data)
    return path


def asked(options: Options | None = None, number: int = 1, **keys: Any) -> Request:
    line = Line(number, json.dumps({"prompt": "hello", **keys}).encode(), "")
    return request(parse(line), number, loaded("f32"), options or Options())


# --- lines ---


def test_blank_lines_are_left_out_and_counted(tmp_path: Path) -> None:
    found = list(lines(written(tmp_path, b"\n{}\r\n  \n\t\r\nb\n\nlast")))
    assert [(line.number, line.data) for line in found] == [(2, b"{}"), (5, b"b"), (7, b"last")]


def test_an_empty_file_has_no_lines(tmp_path: Path) -> None:
    assert list(lines(written(tmp_path, b""))) == []


def test_the_digest_is_that_of_the_text_whatever_ends_the_line(tmp_path: Path) -> None:
    one, two, three = (
        [line.digest for line in lines(written(tmp_path, data))]
        for data in (b"a\nb\n", b"a\r\nb", b"\xef\xbb\xbfa\nc\n")
    )
    assert one == two
    assert one[0] == three[0]
    assert one[1] != three[1]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
@pytest.mark.parametrize("longer", range(-1, 5))
def test_a_line_of_the_largest_length_is_whole_and_a_longer_one_an_error(
    longer: int, end: bytes, tmp_path: Path
) -> None:
    text = json.dumps({"prompt": "x" * (limits.INPUT_BYTES - 14 + longer)}).encode()
    long, short = lines(written(tmp_path, text + end + (b"{}\n" if end else b"\n{}")))
    assert (short.number, short.data) == (2, b"{}")
    if longer <= 0:
        assert parse(long)["prompt"][:2] == "xx"
    else:
        with pytest.raises(DataError, match="longer than 1,048,576 bytes"):
            parse(long)


def test_the_digest_of_a_line_that_is_too_long_is_that_of_all_of_it(tmp_path: Path) -> None:
    size = 3 * limits.INPUT_BYTES
    one, two = (next(lines(written(tmp_path, b"x" * size + end + b"\n"))).digest for end in (b"a", b"b"))
    assert one != two


def test_no_input_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        list(lines(tmp_path / "none"))


# --- requests ---


def test_a_prompt_alone_takes_every_option_as_it_is() -> None:
    options = Options(Sampler(temperature=0.5, top_k=3), 20, "be short")
    found = asked(options)
    assert (found.sampler, found.max_new_tokens, found.stop, found.dropped_rounds) == (options.sampler, 20, [], 0)
    assert len(found.ids) > len(asked().ids)


def test_every_key_of_a_line_goes_before_the_options() -> None:
    own = {"temperature": 0, "top_p": 0.5, "top_k": 7, "repetition_penalty": 1.5, "seed": 11}
    found = asked(Options(Sampler(seed=1), 20, "be short"), system="", max_new_tokens=3, stop=["a", "b"], **own)
    assert found.sampler == Sampler(**own)
    assert (found.max_new_tokens, found.stop, found.ids) == (3, ["a", "b"], asked().ids)


def test_null_is_as_if_the_key_were_not_there() -> None:
    nothing = dict.fromkeys([key for key in KEYS if key != "prompt"])
    options = Options(Sampler(seed=4), 20, "be short")
    assert asked(options, **nothing) == asked(options)
    assert identity({}) == {}


def test_the_prompt_is_that_of_chat() -> None:
    tokenizer = loaded("f32").tokenizer
    assert tokenizer is not None
    found = asked(history=[["a", "b"]], system="S")
    assert found.ids == tokenizer.encode(tokenizer.chat_prompt("hello", [("S", "好的。"), ("a", "b")]))


def test_without_a_bound_the_context_is_the_bound() -> None:
    found = asked()
    assert found.max_new_tokens == loaded("f32").context - len(found.ids)
    assert asked(max_new_tokens=1_000_000).max_new_tokens == found.max_new_tokens


def test_line_n_is_drawn_with_seed_plus_n() -> None:
    seeds = [asked(Options(Sampler(seed=40)), number).sampler.seed for number in (1, 2, 9)]
    assert seeds == [41, 42, 49]
    assert asked(number=3).sampler.seed is None


def test_one_stop_may_stand_alone() -> None:
    assert asked(stop="end").stop == ["end"]
    assert asked(stop=[]).stop == []


def test_rounds_that_do_not_fit_are_counted() -> None:
    found = asked(history=[["hello " * 150, "b"]] * 3)
    assert 0 < found.dropped_rounds < 3


@pytest.mark.parametrize("value", ["a", "", 7, 1.5, True])
def test_the_id_is_any_text_or_number(value: Any) -> None:
    assert identity({"prompt": "x", "id": value}) == {"id": value}


@pytest.mark.parametrize("value", [[1], {"a": 1}])
def test_another_id_is_refused(value: Any) -> None:
    with pytest.raises(DataError, match=r'"id" is .*; expected a text or a number'):
        identity({"id": value})


BAD: dict[str, tuple[dict[str, Any], list[str]]] = {
    "typing error": ({"temprature": 1}, ['unknown key "temprature"', 'did you mean "temperature"', "known: prompt"]),
    "foreign key": ({"messages": []}, ['unknown key "messages"', "known: prompt"]),
    "no prompt": ({"prompt": None}, ['has no "prompt"']),
    "prompt a number": ({"prompt": 5}, ["prompt", "int"]),
    "prompt empty": ({"prompt": " \n"}, ['"prompt" is empty']),
    "prompt too long": ({"prompt": "hello " * 3000}, ["tokens", "context 2,048", "shorten"]),
    "history a text": ({"history": "a"}, ["history", "str"]),
    "history a round": ({"history": ["a", "b"]}, ["history[0]", "pair"]),
    "history of three": ({"history": [["a", "b", "c"]]}, ["history[0]"]),
    "history of numbers": ({"history": [["a", 1]]}, ["history[0][1]", "int"]),
    "system a list": ({"system": ["a"]}, ["system", "list"]),
    "no tokens": ({"max_new_tokens": 0}, ["max_new_tokens is 0", "1 to"]),
    "half a token": ({"max_new_tokens": 1.5}, ["max_new_tokens is 1.5"]),
    "hot": ({"temperature": "hot"}, ["temperature is hot"]),
    "cold": ({"temperature": -1}, ["temperature is -1"]),
    "true": ({"temperature": True}, ["temperature is True"]),
    "top_p": ({"top_p": 2}, ["top_p is 2"]),
    "top_k": ({"top_k": -1}, ["top_k is -1"]),
    "penalty": ({"repetition_penalty": 0}, ["repetition_penalty is 0"]),
    "seed": ({"seed": 1.5}, ["seed is 1.5"]),
    "stop a number": ({"stop": 3}, ["stop is 3"]),
    "stop empty": ({"stop": ["a", ""]}, ["stop", "none of them empty"]),
    "stop nothing": ({"stop": ""}, ["stop", "none of them empty"]),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_with_a_line_is_one_sentence(name: str) -> None:
    keys, words = BAD[name]
    with pytest.raises((DataError, UsageError)) as caught:
        asked(**keys)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 300
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"oops", 'not valid JSON at column 1 (Expecting value); expected {"prompt": ".."}, one object a line'),
        (b'{"prompt": "a"', "not valid JSON at column 15"),
        (b"[1]", 'is a list of 1; expected an object {"prompt": ".."}'),
        (b'"a"', "is a text; expected an object"),
        ('{"prompt": "你"}'.encode("gbk"), "byte 13 is not UTF-8 text (0xc4)"),
        (b'{"prompt": "a", "prompt": "b"}', "duplicate key 'prompt'"),
        (b'{"prompt": "a", "top_p": NaN}', "holds NaN"),
        (b'{"prompt": "\\ud800"}', "holds half a surrogate pair"),
        (b"[" * 100_000, "JSON nested deeper"),
    ],
)
def test_a_line_that_is_no_object_is_one_sentence(data: bytes, words: str) -> None:
    with pytest.raises(DataError) as caught:
        parse(Line(1, data, ""))
    assert str(caught.value).startswith(words)
