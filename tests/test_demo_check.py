"""The model that comes with the package answers what its training never held, whole and rounded to 4 bits."""

import json
from pathlib import Path

import demo_path  # noqa: F401
import pytest

from demo import check
from demo.corpus import TOPICS
from glmcpu import store, texts
from glmcpu.convert import convert

SAMPLE = 15  # of each topic and language; the whole script is 50
LARGEST_BYTES = 10_000_000


@pytest.mark.parametrize("weights", ["f32", "int4_g32"])
def test_shipped_model_answers_rightly(weights: str, tmp_path: Path) -> None:
    result = check.check(convert(store.embedded(), tmp_path / "model.safetensors", weights=weights), SAMPLE)
    shares = {topic: result.share(topic) for topic in TOPICS}
    # A sample of a share at its goal lies a tenth below it once in many.
    short = {topic: share for topic, share in shares.items() if share < check.GOALS.get(topic, 0.8) - 0.1}
    assert not short, check.table({weights: result})


def test_shipped_model_is_small_enough_to_be_in_the_package() -> None:
    assert store.embedded().stat().st_size <= LARGEST_BYTES


def test_script_is_text_that_eval_reads(tmp_path: Path) -> None:
    path = check.write_script(tmp_path / "script.jsonl")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 2 * len(TOPICS) * check.PER_TOPIC
    assert [example.prompt for example in texts.examples(path)] == [line["prompt"] for line in lines]


def test_the_table_has_a_row_for_each_topic_and_language_and_a_column_for_each_model() -> None:
    result = check.Result()
    result.given.update({("copy", "en"): 4, ("copy", "zh"): 4})
    result.right.update({("copy", "en"): 3, ("copy", "zh"): 4})
    assert result.share("copy") == 0.875
    rows = check.table({"f32": result, "int8": result}).splitlines()
    assert rows[0] == "| topic | | f32 | int8 |"
    assert rows[2:] == ["| copy | en | 75% | 75% |", "| copy | zh | 100% | 100% |"]
