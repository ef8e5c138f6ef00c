"""Examples as training reads them: the official form, cuts that are counted, an order that a seed fixes."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_tokenizer import tiny_tokenizer
from tiny_tuning import examples, write_examples

from glmcpu import limits
from glmcpu.errors import DataError
from glmcpu.tuning import data
from glmcpu.tuning.data import Example


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_an_example_is_question_marks_answer_and_end(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    history = [["你好", "hello"]]
    found = examples(write(tmp_path / "x.jsonl", {"prompt": "hello", "response": "你好", "history": history}))
    question = tokenizer.encode(tokenizer.chat_prompt("hello", history))
    answer = tokenizer.encode("你好", add_special_tokens=False)
    (example,) = found.all
    assert example.ids == [*question, *answer, tokenizer.eos]
    assert example.ids[example.begin] == tokenizer.bos
    assert found.targets == len(answer) + 2  # <sop> is predicted too, as officially


def test_what_is_longer_than_the_limits_is_cut_as_officially_and_counted(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    rows = [{"prompt": "hello " * n, "response": "hello " * m} for n, m in ((1, 1), (40, 1), (40, 40))]
    found = examples(write(tmp_path / "x.jsonl", *rows), 12, 9)
    assert (found.cut_questions, found.cut_answers) == (2, 1)
    last = found.all[2]
    assert last.ids.index(tokenizer.gmask) == 11
    assert len(last.ids) == 11 + 2 + 7 + 1
    assert last.ids[-1] == tokenizer.eos
    cut = [
        "3 examples",
        "2 questions are longer than 12 tokens and were cut",
        "1 answer is longer than 9 tokens and was cut",
    ]
    assert found.describe(12, 9).split("; ") == cut
    assert examples(write_examples(tmp_path / "y.jsonl", 1)).describe(64, 64) == "1 example"


def test_an_answer_begins_at_the_first_sop_even_in_a_question(tmp_path: Path) -> None:
    for prompt, begin in (("<sop>hello", 1), ("hello", None)):
        (example,) = examples(write(tmp_path / "x.jsonl", {"prompt": prompt, "response": "你好"})).all
        assert example.begin == (begin or example.ids.index(tiny_tokenizer().bos))


@pytest.mark.parametrize(
    ("line", "fact"),
    [
        ("not json", r"x\.jsonl: line 2"),
        ('{"prompt": "a"}', r'line 2: has no "response"'),
        ('{"prompt": "a", "response": " "}', r'line 2: "response" is empty'),
        ('{"prompt": "a", "response": 5}', r'line 2: "response" is a number'),
        ('{"prompt": "a", "response": "b", "history": 1}', r"line 2: .history"),
    ],
)
def test_a_bad_line_is_named(line: str, fact: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", {"prompt": "a", "response": "b"})
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match=fact):
        examples(path)


def test_too_many_examples_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TUNING_EXAMPLES", 3)
    with pytest.raises(DataError, match="more than 3 examples"):
        examples(write_examples(tmp_path / "x.jsonl", 4))


def test_every_pass_has_each_example_once_in_an_order_of_its_own() -> None:
    known = [Example([i], 0) for i in range(7)]
    drawn = [example.ids[0] for n in range(7) for example in data.batch(known, n, 3, seed=5)]
    turns = np.array(drawn).reshape(3, 7)
    assert all(sorted(turn) == list(range(7)) for turn in turns)
    assert len({tuple(turn) for turn in turns}) == 3
    assert drawn == [example.ids[0] for n in range(7) for example in data.batch(known, n, 3, seed=5)]
    assert drawn != [example.ids[0] for n in range(7) for example in data.batch(known, n, 3, seed=6)]
