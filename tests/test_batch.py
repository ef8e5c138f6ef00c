"""A batch: the answers of chat in the order of the input, errors in their places, a bounded number under way."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from canned_batch import GREEDY, QUESTIONS, WARM, CannedEngine, answers, canned, questions
from tiny_talkers import loaded

from glmcpu import Engine, MachineError, Model, store
from glmcpu.batch import Batch, Figures
from glmcpu.batch_lines import Options, lines
from glmcpu.errors import DataError


@pytest.fixture(scope="module")
def demo() -> Model:
    return Model.load(store.embedded())


def answer(
    model: Model, source: Path, options: Options = GREEDY, parallel: int = 8, overwrite: bool = False, **callbacks: Any
) -> Figures:
    with Engine(model, parallel=parallel) as engine:
        return Batch(engine, source, source.with_name("out.jsonl"), options, **callbacks).run(overwrite=overwrite)


# --- the answers ---


def test_every_answer_is_that_of_chat_in_the_order_of_the_input(demo: Model, tmp_path: Path) -> None:
    figures = answer(demo, questions(tmp_path))
    found = answers(tmp_path / "out.jsonl")
    assert [line["line"] for line in found] == [1, 2, 3, 4, 5, 6]
    assert [line.get("id") for line in found] == [None, "apple", 2, None, None, None]
    for asked, line in zip(QUESTIONS, found, strict=True):
        longest = asked.get("max_new_tokens", 12)
        expected, _ = demo.chat(asked["prompt"], asked.get("history"), do_sample=False, max_new_tokens=longest)
        assert line["response"] == expected
        assert (line["finish_reason"] == "length") == (line["completion_tokens"] == longest)
        assert line["prompt_tokens"] > 3
        assert "dropped_rounds" not in line
    tokens = sum(line["completion_tokens"] for line in found)
    assert (figures.lines, figures.done, figures.kept, figures.failed, figures.tokens) == (6, 6, 0, 0, tokens)


def test_random_weights_answer_as_in_chat_too(tmp_path: Path) -> None:
    model = loaded("int4_g32")
    answer(model, questions(tmp_path))
    for asked, line in zip(QUESTIONS, answers(tmp_path / "out.jsonl"), strict=True):
        longest = asked.get("max_new_tokens", 12)
        expected, _ = model.chat(asked["prompt"], asked.get("history"), do_sample=False, max_new_tokens=longest)
        assert line["response"] == expected


def test_with_a_seed_a_line_is_drawn_as_chat_draws_with_seed_plus_line(demo: Model, tmp_path: Path) -> None:
    answer(demo, questions(tmp_path, [QUESTIONS[0], "", QUESTIONS[1]]), WARM)
    for asked, line in zip(QUESTIONS[:2], answers(tmp_path / "out.jsonl"), strict=True):
        seed = 5 + line["line"]
        expected, _ = demo.chat(asked["prompt"], temperature=1.2, seed=seed, max_new_tokens=12)
        assert line["response"] == expected


def test_how_many_run_at_once_changes_nothing(demo: Model, tmp_path: Path) -> None:
    source, found = questions(tmp_path, QUESTIONS * 4), []
    for parallel in (1, 8):
        answer(demo, source, WARM, parallel, overwrite=True)
        found.append((tmp_path / "out.jsonl").read_bytes())
    assert found[0] == found[1]
    assert len(set(found[0].splitlines())) == 24


def test_the_system_text_is_that_of_a_conversation(demo: Model, tmp_path: Path) -> None:
    asked = [{"prompt": "hello"}, {"prompt": "hello", "system": ""}]
    answer(demo, questions(tmp_path, asked), Options(GREEDY.sampler, 12, "You are Bob."))
    one, two = answers(tmp_path / "out.jsonl")
    talk = demo.start_chat(sampler=GREEDY.sampler, max_new_tokens=12, system="You are Bob.")
    assert one["response"] == "".join(talk.say("hello"))
    assert two["response"] == demo.chat("hello", do_sample=False, max_new_tokens=12)[0]
    assert one["prompt_tokens"] > two["prompt_tokens"]


def test_a_stop_string_ends_an_answer(demo: Model, tmp_path: Path) -> None:
    whole = demo.chat("What is 45 + 38?", do_sample=False)[0]
    answer(demo, questions(tmp_path, [{"prompt": "What is 45 + 38?", "stop": "="}]), Options(GREEDY.sampler))
    (line,) = answers(tmp_path / "out.jsonl")
    assert "=" in whole
    assert (line["response"], line["finish_reason"]) == (whole.partition("=")[0], "stop")


def test_rounds_that_were_left_out_are_told(tmp_path: Path) -> None:
    canned(questions(tmp_path, [{"prompt": "a", "history": [["hello " * 150, "b"]] * 5}]))
    assert answers(tmp_path / "out.jsonl")[0]["dropped_rounds"] in (1, 2, 3)


def test_an_empty_input_gives_an_empty_output(tmp_path: Path) -> None:
    assert canned(questions(tmp_path, ["", " "])).done == 0
    assert (tmp_path / "out.jsonl").read_bytes() == b""


# --- lines that are wrong ---


def test_a_bad_line_is_an_error_in_its_place_and_the_others_are_answered(demo: Model, tmp_path: Path) -> None:
    bad = ["oops", "[]", '{"prompt": ""}', '{"prompt": "a", "id": "x", "top_p": 9}', '{"prompt": "a", "id": []}']
    bad += [json.dumps({"prompt": "hello " * 3000}), json.dumps({"prompt": "\ud83d"})]
    asked: list[dict[str, Any] | str] = [part for line in bad for part in (line, {"prompt": "hello"})]
    told: list[str] = []
    figures = answer(demo, questions(tmp_path, asked), report=told.append)
    found = answers(tmp_path / "out.jsonl")
    assert [line["line"] for line in found] == list(range(1, 15))
    assert all(line.keys() <= {"line", "digest", "id", "error"} for line in found[::2])
    assert [line.get("id") for line in found[::2]] == [None, None, None, "x", None, None, None]
    assert all("\n" not in line["error"] and len(line["error"]) < 300 for line in found[::2])
    assert told == [f"line {line['line']}: {line['error']}" for line in found[::2]]
    assert len({line["response"] for line in found[1::2]}) == 1
    assert (figures.done, figures.failed, figures.failed_lines) == (14, 7, [1, 3, 5, 7, 9, 11, 13])


def test_an_error_in_the_midst_of_an_answer_is_that_of_its_line(tmp_path: Path) -> None:
    engine = CannedEngine(failure=lambda n: DataError("unreadable") if n == 2 else None)
    canned(questions(tmp_path, QUESTIONS[:3]), engine)
    found = answers(tmp_path / "out.jsonl")
    assert [line.get("error") for line in found] == [None, "unreadable", None]
    assert "response" not in found[1]


def test_of_many_bad_lines_the_first_are_remembered(tmp_path: Path) -> None:
    figures = canned(questions(tmp_path, ["oops"] * 50))
    assert (figures.failed, figures.failed_lines) == (50, list(range(1, 11)))


# --- memory and disk ---


def test_no_more_than_the_places_are_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, read = questions(tmp_path, [{"prompt": f"hello {n}"} for n in range(200)]), 0

    def counted(path: Path) -> Iterator[Any]:
        nonlocal read
        for line in lines(path):
            read += 1
            yield line

    ahead: list[int] = []
    engine: Any = CannedEngine(places=5)
    work = Batch(engine, source, tmp_path / "out.jsonl", GREEDY, progress=lambda now: ahead.append(read - now.done))
    monkeypatch.setattr("glmcpu.batch.batch_lines.lines", counted)
    work.run()
    assert engine.most == 5
    assert max(ahead) <= 6


def test_a_machine_that_fails_ends_the_run_and_the_next_one_goes_on(tmp_path: Path) -> None:
    source = questions(tmp_path)
    with pytest.raises(MachineError, match="no memory"):
        canned(source, CannedEngine(failure=lambda n: MachineError("no memory") if n == 4 else None))
    assert [line["line"] for line in answers(tmp_path / "out.jsonl")] == [1, 2, 3]
    assert canned(source).kept == 3


def test_a_real_engine_goes_on_with_the_same_answers(demo: Model, tmp_path: Path) -> None:
    source, target = questions(tmp_path), tmp_path / "out.jsonl"
    answer(demo, source, WARM)
    whole = target.read_bytes()
    for share in (0.2, 0.5, 0.9):
        target.write_bytes(whole[: int(share * len(whole))])
        answer(demo, source, WARM, parallel=2)
        assert target.read_bytes() == whole
