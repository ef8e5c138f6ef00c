"""Texts as sequences: what is context and what is scored, and every way a file can be wrong, with its line."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizer import tiny_tokenizer

from glmcpu import limits, texts
from glmcpu.errors import DataError
from glmcpu.texts import Columns, Example, examples, sequences

TOKENIZER = tiny_tokenizer()


def encode(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


def jsonl(folder: Path, *values: Any) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), encoding="utf-8")
    return path


def text_file(folder: Path, data: str | bytes, name: str = "some.txt") -> Path:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def test_an_example_is_prompt_gmask_sop_response_eop_and_the_response_is_scored(tmp_path: Path) -> None:
    (found,) = sequences(jsonl(tmp_path, {"prompt": "你是谁", "response": "我是助手"}), TOKENIZER)
    assert found.ids == TOKENIZER.encode_pair("你是谁", "我是助手")
    assert found.ids[found.begin - 2 : found.begin] == [TOKENIZER.gmask, TOKENIZER.bos]
    assert found.ids[found.begin :] == [*encode("我是助手"), TOKENIZER.eos]
    assert found.where.endswith("data.jsonl: line 1")


def test_history_becomes_the_rounds_of_a_chat_prompt(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"history": [["hello", "world"], ["a", ""]], "prompt": "你好", "response": "b", "more": 1})
    (found,) = sequences(path, TOKENIZER)
    context = TOKENIZER.chat_prompt("你好", [("hello", "world"), ("a", "")])
    assert found.ids == TOKENIZER.encode_pair(context, "b")
    assert list(examples(path)) == [Example("你好", "b", (("hello", "world"), ("a", "")), 1)]


def test_the_columns_of_a_data_set_may_have_any_names_and_its_history_may_be_absent_or_empty(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path,
        {"content": "类型#上衣", "summary": "很好", "prompt": 5, "history": 5},
        {"content": "a", "summary": "b", "talk": []},
        {"content": "a", "summary": "b", "talk": [["c", "d"]]},
    )
    found = list(examples(path, Columns("content", "summary", "talk")))
    assert found == [Example("类型#上衣", "很好", (), 1), Example("a", "b", (), 2), Example("a", "b", (("c", "d"),), 3)]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"prompt": "a", "response": "b"}, ['no "content" but prompt, response', '{"content": "..", "summary": ".."}']),
        ({"content": "a"}, ['no "summary" but content']),
        ({"content": 1, "summary": "b"}, ['"content" is a number']),
        ({"content": "a", "summary": " "}, ['"summary" is empty']),
        ({"content": "a", "summary": "b", "ta\x1blk": [1]}, ['"ta\\x1blk": round 1 of it is a number']),
    ],
)
def test_an_error_says_the_names_of_the_columns(value: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.jsonl: line 1: ") as error:
        list(examples(jsonl(tmp_path, value), Columns("content", "summary", "ta\x1blk")))
    assert all(word in str(error.value) for word in words), error.value


def test_blank_lines_count_and_are_left_out_a_byte_order_mark_and_windows_line_ends_do_not_matter(
    tmp_path: Path,
) -> None:
    line = b'{"prompt": "", "response": "b"}'
    path = text_file(tmp_path, b"\xef\xbb\xbf" + line + b"\r\n\r\n  \n" + line, "odd.txt")
    assert [(e.prompt, e.response, e.line) for e in examples(path)] == [("", "b", 1), ("", "b", 4)]
    assert len(list(sequences(path, TOKENIZER))) == 2  # JSONL by its content


def test_plain_text_is_cut_into_windows_and_their_second_halves_are_scored(tmp_path: Path) -> None:
    text = "hello world 你好\nthe lazy dog\n" * 30
    ids, found = encode(text), list(sequences(text_file(tmp_path, text), TOKENIZER, window=50))
    for n, sequence in enumerate(found):
        part = ids[50 * n : 50 * (n + 1)]
        half = len(part) // 2
        assert sequence.ids == [*part[:half], TOKENIZER.gmask, TOKENIZER.bos, *part[half:]]
        assert sequence.begin == half + 2
        assert sequence.where.endswith(f"some.txt: line {1 + ids[: 50 * n].count(encode(chr(10))[-1])}")
    left = len(ids) % 50
    assert len(found) == len(ids) // 50 + (left >= 25)


def test_text_read_in_blocks_has_the_ids_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "the fox , isn't it ?\n\n  你好 世界\t:\n 12\n" * 9 + "dog"
    monkeypatch.setattr(texts, "_BLOCK_CHARS", 30)
    for data in (text, text.replace("\n", "\r\n")):
        found = list(sequences(text_file(tmp_path, data), TOKENIZER, window=2))
        ids = [i for s in found for i in s.ids if i not in (TOKENIZER.gmask, TOKENIZER.bos)]
        assert ids == encode(text)


def test_a_text_shorter_than_a_window_is_one(tmp_path: Path) -> None:
    (found,) = sequences(text_file(tmp_path, "hello world"), TOKENIZER)
    assert len(found.ids) == len(encode("hello world")) + 2
    (found,) = sequences(text_file(tmp_path, "a b c"), TOKENIZER)
    assert len(found.ids) - found.begin >= 2


def test_windows_fit_into_what_the_model_reads(tmp_path: Path) -> None:
    found = list(sequences(text_file(tmp_path, "hello " * 500), TOKENIZER, longest=40))
    assert max(len(s.ids) for s in found) == 40


def test_reading_needs_memory_for_a_block_of_the_file_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "_BLOCK_CHARS", 1 << 12)
    path = text_file(tmp_path, "hello world\n" * 50_000)
    tracemalloc.start()
    try:
        count = sum(1 for _ in sequences(path, TOKENIZER, window=256))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count > 1000
    assert peak < path.stat().st_size / 2


GOOD = b'{"prompt": "a", "response": "b"}\n'


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", ["is empty", '{"prompt"']),
        (b" \n\n", ["is empty"]),
        (GOOD + b"hello\n", ["line 2", "not valid JSON at column 1", '{"prompt"']),
        (GOOD + b'\n{"prompt": "a"\n', ["line 3", "not valid JSON", "column 15"]),
        (GOOD + b"[1, 2]\n", ["line 2", "a list of 2", "expected an object"]),
        (b"null\n", ["line 1", "is null"]),
        (b'"text"\n', ["line 1", "a text"]),
        (b'{"response": "b"}', ["line 1", 'no "prompt" but response']),
        (b'{"content": "a", "summary": "b"}', ['no "prompt" but content, summary']),
        (b'{"prompt": "a"}', ['no "response"']),
        (b"{}", ['no "prompt" but nothing']),
        (b'{"prompt": 1, "response": "b"}', ['"prompt" is a number', "expected a text"]),
        (b'{"prompt": "a", "response": null}', ['"response" is null']),
        (b'{"prompt": "a", "response": ["b"]}', ['"response" is a list of 1']),
        (GOOD * 4 + b'{"prompt": "a", "response": " "}', ["line 5", '"response" is empty']),
        (b'{"prompt": "a", "response": "b", "history": null}', ['"history": is null', '["question", "answer"]']),
        (b'{"prompt": "a", "response": "b", "history": "c"}', ['"history": is a text']),
        (b'{"prompt": "a", "response": "b", "history": [["c", "d"], ["e"]]}', ["round 2 of it is a list of 1"]),
        (b'{"prompt": "a", "response": "b", "history": [["c", 1]]}', ["round 1 of it"]),
        (b'{"prompt": "a", "prompt": "b", "response": "c"}', ["line 1", "duplicate key 'prompt'"]),
        (b'{"prompt": "\\ud800", "response": "c"}', ["line 1", "surrogate"]),
        (GOOD + '{"prompt": "你"'.encode("gbk"), ["line 2", "byte 13 is not UTF-8", "save the file as UTF-8"]),
        ('{"prompt": "你"'.encode("utf-16"), ["line 1", "byte 1 is not UTF-8"]),
        ('{"prompt": "a"'.encode("utf-16-le"), ["line 1", "byte 2 is not UTF-8"]),
        (GOOD + b'{"prompt": "a", "response": "' + b"b" * 2000, ["line 2", "longer than 1,000 bytes"]),
    ],
)
def test_what_is_wrong_with_a_line_is_said_with_its_number(
    data: bytes, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "INPUT_BYTES", 1000)
    path = text_file(tmp_path, data, "x.jsonl")
    with pytest.raises(DataError) as error:
        list(sequences(path, TOKENIZER))
    assert all(word in str(error.value) for word in ["x.jsonl", *words]), error.value
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("data", [b"", b"\n", b"  \n", b"a"])
def test_plain_text_of_too_few_tokens_is_refused(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"some\.txt: holds \d tokens of text, and at least 4"):
        list(sequences(text_file(tmp_path, data), TOKENIZER))


def test_plain_text_in_another_encoding_is_refused_at_its_line(tmp_path: Path) -> None:
    path = text_file(tmp_path, b"hello\n" * 5 + "你好".encode("gbk"))
    with pytest.raises(DataError, match=r"some\.txt: line 6: byte 1 is not UTF-8 text \(0xc4\)"):
        list(sequences(path, TOKENIZER))


def test_an_example_longer_than_the_model_reads_is_refused_with_its_line(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"prompt": "a", "response": "b"}, {"prompt": "hello " * 50, "response": "b"})
    with pytest.raises(DataError, match=r"line 2: \d+ tokens with prompt and history, .* at most 40"):
        list(sequences(path, TOKENIZER, longest=40))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        list(sequences(tmp_path / "none.txt", TOKENIZER))
    with pytest.raises(DataError, match="not a regular file"):
        list(sequences(tmp_path, TOKENIZER))
