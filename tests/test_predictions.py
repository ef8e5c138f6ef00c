"""Predictions: what of an example the model reads, how long an answer may be, and the answers in order."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from canned_batch import CannedEngine
from tiny_talkers import loaded
from tiny_tokenizer import tiny_tokenizer

from glmcpu import predictions
from glmcpu.engine import Engine
from glmcpu.errors import DataError, UsageError
from glmcpu.generate import Token
from glmcpu.predictions import Asked, Lengths, predict, read
from glmcpu.sampling import Sampler
from glmcpu.texts import Columns

TOKENIZER = tiny_tokenizer()
MODEL: Any = SimpleNamespace(tokenizer=TOKENIZER, context=2048)
OFFICIAL = Lengths()
QUESTIONS = ["hello", "你好", "the quick brown fox jumps", "What is 45 + 38?", "a"]


def encode(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


def jsonl(folder: Path, *values: dict[str, Any]) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), encoding="utf-8")
    return path


def asked_by(folder: Path, *values: dict[str, Any], lengths: Lengths = OFFICIAL) -> list[Asked]:
    return read(jsonl(folder, *values), MODEL, Columns(), lengths)


def test_prompt_and_label_of_an_example(tmp_path: Path) -> None:
    (found,) = asked_by(tmp_path, {"prompt": "你是谁", "response": " 我是助手 , hello !"})
    assert found.ids == TOKENIZER.encode("你是谁")
    assert found.label == TOKENIZER.decode(encode(" 我是助手 , hello !"))
    assert (found.line, found.max_new_tokens) == (1, 129 - len(found.ids))


def test_a_history_makes_a_chat_prompt(tmp_path: Path) -> None:
    history = [["hello", "world"]]
    (found,) = asked_by(tmp_path, {"prompt": "你好", "response": "b", "history": history}, lengths=Lengths(256, 64))
    assert found.ids == TOKENIZER.encode(TOKENIZER.chat_prompt("你好", [("hello", "world")]))
    alone, empty = asked_by(tmp_path, {"prompt": "a", "response": "b"}, {"prompt": "a", "response": "b", "history": []})
    assert alone.ids == empty.ids == TOKENIZER.encode("a")


def test_prompt_and_label_are_cut_to_their_lengths_with_two_special_ids_in_them(tmp_path: Path) -> None:
    text = "the quick brown fox jumps over the lazy dog"
    (found,) = asked_by(tmp_path, {"prompt": text, "response": text}, lengths=Lengths(10, 7))
    assert found.ids == [*encode(text)[:8], TOKENIZER.gmask, TOKENIZER.bos]
    assert found.label == TOKENIZER.decode(encode(text)[:5])
    assert found.max_new_tokens == 10 + 7 + 1 - 10
    (exact,) = asked_by(tmp_path, {"prompt": text, "response": text}, lengths=Lengths(len(encode(text)) + 2, 64))
    assert exact.ids == TOKENIZER.encode(text)


def test_special_pieces_are_no_part_of_a_label(tmp_path: Path) -> None:
    (found,) = asked_by(tmp_path, {"prompt": "a", "response": "hello<eop><pad>"})
    assert found.label == "hello"


def test_an_answer_is_as_long_as_beside_the_longest_prompt_of_its_thousand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictions, "TOGETHER", 2)
    prompts = ["a", "the quick brown fox", "", "a", "hello world , hello"]
    found = asked_by(tmp_path, *({"prompt": prompt, "response": "b"} for prompt in prompts), lengths=Lengths(100, 28))
    assert [one.line for one in found] == [1, 2, 4, 5]
    longest = [TOKENIZER.encode(prompts[n]) for n in (1, 1, 3, 4)]
    assert [one.max_new_tokens for one in found] == [129 - len(ids) for ids in longest]


def test_the_first_examples_are_enough_when_no_more_are_wanted(tmp_path: Path) -> None:
    path = jsonl(tmp_path, *({"prompt": "a", "response": "b"} for _ in range(3)), {"wrong": 1})
    assert [one.line for one in read(path, MODEL, Columns(), OFFICIAL, most=3)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"prompt": "a", "response": "<eop>"}, ["line 1: the response is empty to the tokenizer"]),
        ({"prompt": "", "response": "a"}, ["each prompt is empty"]),
        ({"prompt": "a"}, ['line 1: has no "response"']),
    ],
)
def test_what_cannot_be_asked_is_said_with_its_place(value: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.jsonl: ") as error:
        asked_by(tmp_path, value)
    assert all(word in str(error.value) for word in words), error.value


def test_lengths_that_the_model_does_not_read_and_a_model_without_tokenizer_are_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"prompt": "a", "response": "b"})
    with pytest.raises(UsageError, match=r"2,000 ids of a prompt and 48 of an answer, and one, are 2,049, .* 2,048"):
        read(path, MODEL, Columns(), Lengths(2000, 48))
    read(path, MODEL, Columns(), Lengths(2000, 47))
    with pytest.raises(DataError, match="no tokenizer"):
        read(path, SimpleNamespace(tokenizer=None, context=2048), Columns(), OFFICIAL)


def test_answers_come_in_order_and_are_those_of_the_model_alone(tmp_path: Path) -> None:
    model = loaded("f32")
    asked = asked_by(tmp_path, *({"prompt": q, "response": "b"} for q in QUESTIONS), lengths=Lengths(64, 10))
    sampler = Sampler(temperature=1.5, top_p=1, top_k=0, seed=7)
    with Engine(model, parallel=2, waiting=1) as engine:
        found = list(predict(engine, asked, sampler))
    for answer, one in zip(found, asked, strict=True):
        own = dataclasses.replace(sampler, seed=7 + one.line)
        tokens = model.generate(one.ids, sampler=own, max_new_tokens=one.max_new_tokens)
        ids = [token.id for token in tokens if token.id < TOKENIZER.size]
        assert answer == TOKENIZER.decode(ids, skip_special_tokens=True)
    assert any(found)


class IdsEngine(CannedEngine):
    """Answers with these ids."""

    def __init__(self, ids: Sequence[int]) -> None:
        super().__init__()
        self._ids = ids

    def submit(self, ids: Sequence[int], **_: Any) -> Any:
        return [Token(token, "", -1.0) for token in self._ids]


def test_an_answer_is_plain_text_without_special_pieces_and_rows_behind_the_last_piece() -> None:
    hello = encode("hello , 你好 , it 's")
    ids = [*hello, TOKENIZER.gmask, TOKENIZER.pad, TOKENIZER.size, 1023, *hello, TOKENIZER.eos]
    engine: Any = IdsEngine(ids)
    assert list(predict(engine, [Asked([1], 5, "", 1)], Sampler())) == [TOKENIZER.decode([*hello, *hello])]


def test_no_more_answers_are_under_way_than_the_engine_has_places() -> None:
    engine: Any = CannedEngine(places=3)
    assert len(list(predict(engine, [Asked([n], 5, "", n) for n in range(20)], Sampler()))) == 20
    assert engine.most == 3
