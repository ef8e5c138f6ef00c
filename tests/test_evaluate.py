"""Evaluation: what is scored, against the plain forward; a model and itself; formats; memory; models that differ."""

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import golden
import numpy as np
import pytest
from tiny_checkpoint import write_checkpoint
from tiny_talkers import examples, loaded
from tiny_tokenizer import tiny_model, tiny_tokenizer

from glmcpu import evaluate, formats, limits, texts
from glmcpu.convert import convert
from glmcpu.errors import DataError
from glmcpu.evaluate import Text, tokenizer_of
from glmcpu.model import Model
from glmcpu.models.chatglm import ChatGLM
from glmcpu.scoring import Tokens, summarize


def text(folder: Path, most: int | None = None, n: int = 6) -> Text:
    return Text(examples(folder, n), tiny_tokenizer(), 2048, most)


class Given(Text):
    """Sequences of ids, for models without a tokenizer."""

    def __init__(self, sequences: list[texts.Sequence]) -> None:
        self.sequences = sequences
        self.ids = sum(len(sequence.ids) for sequence in sequences)

    def __iter__(self) -> Iterator[texts.Sequence]:
        return iter(self.sequences)


def plain(model: Model, sequences: Text) -> tuple[list[float], list[np.ndarray]]:
    """-ln p of each scored id and the log-probabilities it is from, by the official forward over one sequence."""
    nll, logs = [], []
    for sequence in sequences:
        scores = model.logits(sequence.ids).astype(np.float64)
        for place in range(sequence.begin, len(sequence.ids)):
            row = scores[place - 1] - scores[place - 1].max()
            logs.append(row - math.log(np.exp(row).sum()))
            nll.append(-logs[-1][sequence.ids[place]])
    return nll, logs


def same(a: Tokens, b: Tokens) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("nll", "kl", "same_top", "change"))


@pytest.mark.parametrize("weights", formats.names())
def test_each_id_is_scored_as_the_forward_over_its_sequence_alone_says(weights: str, tmp_path: Path) -> None:
    words, exact, model = text(tmp_path), loaded("f32"), loaded(weights)
    first, second = evaluate.evaluate([model], words, exact)
    (expected, logs), (_, exact_logs) = plain(model, words), plain(exact, words)
    np.testing.assert_allclose(second.nll, expected, atol=1e-6)
    np.testing.assert_allclose(first.nll, plain(exact, words)[0], atol=1e-6)
    kl = [(np.exp(b) * (b - a)).sum() for a, b in zip(logs, exact_logs, strict=True)]
    np.testing.assert_allclose(second.kl, kl, atol=1e-6)
    change = [np.abs(np.exp(b) - np.exp(a)).max() for a, b in zip(logs, exact_logs, strict=True)]
    np.testing.assert_allclose(second.change, change, atol=1e-6)
    assert second.same_top.tolist() == [a.argmax() == b.argmax() for a, b in zip(logs, exact_logs, strict=True)]
    assert second.lengths.tolist() == [len(s.ids) - s.begin for s in words]
    assert second.lengths.sum() == words.scored == len(second.nll)


@pytest.mark.parametrize("checkpoint", ["tiny-mini", "tiny-1d"])
def test_scores_are_the_official_ones_with_either_kind_of_position(checkpoint: str) -> None:
    case = golden.case(checkpoint, "gmask")
    model, ids = golden.model(checkpoint, "f32"), case["input_ids"][0].tolist()
    begin = ids.index(model.config.bos) + 1
    for answer in ([5], [5, 9, 7, 250, 6]):
        words = Given([texts.Sequence([*ids[:begin], *answer], begin, "here")])
        (found,) = evaluate.evaluate([model], words)
        np.testing.assert_allclose(found.nll, plain(model, words)[0], atol=1e-6)
    row = case["logits"].reshape(-1, model.config.vocabulary)[begin - 1].astype(np.float64)
    np.testing.assert_allclose(found.nll[0], np.log(np.exp(row - row[5]).sum()), atol=1e-3)


def test_a_model_and_itself_are_equal_to_the_bit(tmp_path: Path) -> None:
    for weights in ("f32", "int4_g32"):
        model = loaded(weights)
        reference, found = evaluate.evaluate([model], text(tmp_path), model)
        assert (found.kl == 0).all()
        assert found.same_top.all()
        assert (found.change == 0).all()
        np.testing.assert_array_equal(found.nll, reference.nll)


def test_fewer_bits_are_farther_from_the_reference(tmp_path: Path) -> None:
    models = [loaded(weights) for weights in ("f16", "int8", "int4_g32", "int4")]
    found = [summarize(tokens) for tokens in evaluate.evaluate(models, text(tmp_path), loaded("f32"))]
    assert found[0].kl is None
    means = [each.kl.mean for each in found[1:] if each.kl]
    assert means == sorted(means)
    assert means[0] < means[1] / 100 < means[2] / 1000
    tops = [each.kl.top1 for each in found[1:] if each.kl]
    assert tops[0] == 1 > tops[-1]


def test_without_a_reference_each_model_has_its_own_numbers(tmp_path: Path) -> None:
    together = evaluate.evaluate([loaded("f32"), loaded("int8")], text(tmp_path))
    alone = [evaluate.evaluate([loaded(weights)], text(tmp_path))[0] for weights in ("f32", "int8")]
    assert all(map(same, together, alone))
    assert all(len(found.kl) == 0 for found in together)


def test_how_sequences_are_put_together_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> list[Tokens]:
        return evaluate.evaluate([loaded("int4_g32")], text(tmp_path), loaded("f16"))

    whole = run()
    for name, value in (("_PASS_POSITIONS", 300), ("_PASS_POSITIONS", 1), ("SCORES_BYTES", 1)):
        monkeypatch.setattr(evaluate, name, value)
        assert all(map(same, run(), whole))


def test_a_pass_has_room_for_the_prefix_of_each_sequence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "_PASS_POSITIONS", 512)
    assert [len(group) for group in evaluate._passes(text(tmp_path))] == [4, 2]
    assert [len(group) for group in evaluate._passes(text(tmp_path), 128)] == [2, 2, 2]
    assert [len(group) for group in evaluate._passes(text(tmp_path), 1000)] == [1] * 6


def test_scores_are_never_held_for_many_ids_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    inner = ChatGLM._scores

    def watched(self: ChatGLM, x: Any) -> Any:
        rows.append(len(x))
        return inner(self, x)

    monkeypatch.setattr(ChatGLM, "_scores", watched)
    model = loaded("f32")
    monkeypatch.setattr(evaluate, "SCORES_BYTES", 5 * evaluate._BYTES_PER_SCORE * model.config.vocabulary)
    words = text(tmp_path)
    evaluate.evaluate([loaded("int8")], words, model)
    assert max(rows) == 5
    assert sum(rows) > 2 * words.scored


def test_most_tokens_end_the_text_in_the_middle_of_an_answer(tmp_path: Path) -> None:
    whole = evaluate.evaluate([loaded("f32")], text(tmp_path))[0]
    for most in (1, 7, 20, 10**6):
        words = text(tmp_path, most)
        (found,) = evaluate.evaluate([loaded("f32")], words)
        assert words.scored == len(found.nll) == min(most, len(whole.nll))
        np.testing.assert_array_equal(found.nll, whole.nll[:most])


def test_more_ids_than_can_be_kept_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "EVAL_TOKENS", 20)
    with pytest.raises(DataError, match=r"examples\.jsonl: line 2: more than 20 tokens to score.*--max-tokens"):
        text(tmp_path)
    assert text(tmp_path, 20).scored == 20


def test_progress_grows_to_all_ids_of_all_models(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    words = text(tmp_path)
    evaluate.evaluate([loaded("int8")], words, loaded("f32"), lambda *state: seen.append(state))
    done = [state[0] for state in seen]
    assert done == sorted(done)
    assert {state[1] for state in seen} == {2 * words.ids}
    assert seen[-1] == (2 * words.ids, 2 * words.ids)


def test_scores_that_are_no_numbers_are_the_models_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded("f32")
    monkeypatch.setattr(
        model.language_model, "scores", lambda x: np.full((len(x), 1024), np.nan, np.float32), raising=False
    )
    with pytest.raises(DataError, match=r"talker-f32\.safetensors: gives scores that are NaN.*glmcpu verify"):
        evaluate.evaluate([model], text(tmp_path))


def test_models_that_cannot_read_the_same_ids_are_refused(tmp_path: Path) -> None:
    first = loaded("f32")
    assert tokenizer_of([first, loaded("int4")]) is first.tokenizer
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the missing tokenizer
        mute = Model.load(convert(write_checkpoint(tmp_path / "a", tokenizer=False), tmp_path / "mute.safetensors"))
    for models in ([mute], [first, mute], [mute, first]):
        with pytest.raises(DataError, match=r"mute\.safetensors: has no tokenizer"):
            tokenizer_of(models)
    with pytest.raises(DataError, match=r"tiny-mini.*has (no tokenizer|a vocabulary)"):
        tokenizer_of([first, golden.model("tiny-mini", "f32")])


def test_a_tokenizer_of_other_pieces_is_told_from_the_same(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint")
    before, after = "世".encode(), "且".encode()
    (folder / "ice_text.model").write_bytes(tiny_model().replace(before, after))
    other = Model.load(convert(folder, tmp_path / "other.safetensors"))
    with pytest.raises(DataError, match=r"other\.safetensors: has another tokenizer, as .*talker-f32"):
        tokenizer_of([loaded("f32"), other])
