"""Questions and answers as one prompt, and responses tidied, like the official code."""

import itertools
import json
import re
from pathlib import Path

import pytest

from glmcpu.tokenizers import prompt

DATA = Path(__file__).parent / "data"
SHARED = Path(__file__).parents[1].parent / "shared" / "golden" / "visible" / "tokenizer"


def test_responses_equal_the_official_ones() -> None:
    for case in json.loads((DATA / "process_response.json").read_text("utf-8")):
        assert prompt.process_response(case["inp"]) == case["out"]


def test_one_pass_over_marks_equals_two_passes_for_each_mark() -> None:
    for letters in itertools.product("中a,!? ", repeat=5):
        text = expected = "".join(letters)
        for mark, full in prompt.FULL_WIDTH.items():
            expected = re.sub(rf"([\u4e00-\u9fff]){re.escape(mark)}", rf"\g<1>{full}", expected)
            expected = re.sub(rf"{re.escape(mark)}([\u4e00-\u9fff])", rf"{full}\g<1>", expected)
        assert prompt.full_width_marks(text) == expected


def test_a_first_question_stands_without_a_frame() -> None:
    assert prompt.chat_prompt(" 你好\n") == " 你好\n"


def test_rounds_count_from_zero_and_end_with_an_open_answer() -> None:
    text = prompt.chat_prompt("q2", [("q0", "a0"), ("q1", "a1")])
    assert text == "[Round 0]\n问：q0\n答：a0\n[Round 1]\n问：q1\n答：a1\n[Round 2]\n问：q2\n答："


def test_prompts_equal_the_official_ones() -> None:
    if not SHARED.exists():
        pytest.skip("the goldens of ../shared are not here")
    for case in json.loads((SHARED / "chat_prompts.json").read_text("utf-8")):
        assert prompt.chat_prompt(case["query"], case["history"]) == case["prompt"]
