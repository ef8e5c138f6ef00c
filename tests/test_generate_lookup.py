"""An answer with drafts is the answer without, token for token and to the bit, however wrong the drafts are."""

import random
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_checkpoint import write_checkpoint
from tiny_tokenizer import ROWS, tiny_tokenizer

from glmcpu.convert import convert
from glmcpu.generate import Token, generate
from glmcpu.model import Model
from glmcpu.models import Part
from glmcpu.sampling import Sampler

GREEDY = Sampler(temperature=0)
SAMPLERS = {
    "greedy": GREEDY,
    "official": Sampler(seed=4),
    "wild": Sampler(temperature=3, top_k=0, top_p=1, seed=5),
    "penalty": Sampler(temperature=0, repetition_penalty=1.4),
    "wild with penalty": Sampler(temperature=2, top_k=0, top_p=0.95, repetition_penalty=1.2, seed=6),
}
TWO_DIMENSIONS, ONE_DIMENSION = True, False


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Model]:
    """models(weights, positions, context): tiny models with a tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    paths = {
        (weights, positions): convert(
            write_checkpoint(folder / f"{positions}", position_encoding_2d=positions),
            folder / f"{weights}-{positions}.safetensors",
            weights=weights,
        )
        for weights in ("int4_g32", "int8", "f16")
        for positions in (TWO_DIMENSIONS, ONE_DIMENSION)
    }

    def load(weights: str = "int4_g32", positions: bool = TWO_DIMENSIONS, context: int = 128) -> Model:
        return Model.load(paths[weights, positions], context=context, threads=1)

    return load


def prompt() -> list[int]:
    tokenizer = tiny_tokenizer()
    return [*tokenizer.encode("hello world how are you", add_special_tokens=False), tokenizer.gmask, tokenizer.bos]


def said(tokens: Sequence[Token]) -> list[tuple[Any, ...]]:
    return [(t.id, t.text, t.logprob, t.finish_reason) for t in tokens]


def plain(model: Model, **options: Any) -> list[Token]:
    return list(model.generate(prompt(), lookup=False, **options))


def drafting(monkeypatch: pytest.MonkeyPatch, answer: Sequence[Token], right: float) -> list[tuple[int, int]]:
    """Makes `generate` draft this answer, each id with a chance of `right` to be the right one.

    Returns a list that fills with (ids so far, drafts) of each pass.
    """
    passes: list[tuple[int, int]] = []
    rng = random.Random(7)

    class Told:
        def __init__(self, most: int, tokens: int, seconds: float) -> None:
            self.known, self.most = prompt() + [t.id for t in answer], most

        def draft(self, ids: Sequence[int], room: int) -> list[int]:
            rest = self.known[len(ids) :] + [9] * 8
            drafts = [i if rng.random() < right else rng.randrange(200) for i in rest[: max(0, min(room, self.most))]]
            passes.append((len(ids), len(drafts)))
            return drafts

        def learn(self, drafts: int, held: int, seconds: float) -> None:
            assert 0 <= held <= drafts

    monkeypatch.setattr("glmcpu.generate.Lookup", Told)
    return passes


@pytest.mark.parametrize("right", [1.0, 0.8, 0.3, 0.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("weights", ["int4_g32", "int8", "f16"])
def test_answer_is_the_plain_one_whatever_is_drafted(
    models: Callable[..., Model], monkeypatch: pytest.MonkeyPatch, weights: str, sampler: str, right: float
) -> None:
    model, options = models(weights), {"sampler": SAMPLERS[sampler], "max_new_tokens": 60}
    expected = plain(model, **options)
    passes = drafting(monkeypatch, expected, right)
    assert said(list(model.generate(prompt(), **options))) == said(expected)
    assert sum(drafts for _, drafts in passes) > 0 or len(expected) < 3


@pytest.mark.parametrize("right", [1.0, 0.5])
def test_one_dimensional_positions_are_those_of_ids_read_one_by_one(
    models: Callable[..., Model], monkeypatch: pytest.MonkeyPatch, right: float
) -> None:
    model = models(positions=ONE_DIMENSION)
    expected = plain(model, sampler=SAMPLERS["wild"], max_new_tokens=60)
    drafting(monkeypatch, expected, right)
    assert said(list(model.generate(prompt(), sampler=SAMPLERS["wild"], max_new_tokens=60))) == said(expected)


@pytest.mark.parametrize("place", range(12))
def test_end_inside_the_drafts_is_the_end(
    models: Callable[..., Model], monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    model, sampler = models(), SAMPLERS["wild"]
    answer = plain(model, sampler=sampler, max_new_tokens=40)
    expected = plain(model, sampler=sampler, max_new_tokens=40, stop=[answer[place].id])
    drafting(monkeypatch, answer, 1.0)  # they go on behind the end
    tokens = list(model.generate(prompt(), sampler=sampler, max_new_tokens=40, stop=[answer[place].id]))
    assert said(tokens) == said(expected)
    assert tokens[-1].finish_reason == "stop"


@pytest.mark.parametrize("start", [0, 5, 11])
def test_stop_string_across_tokens_inside_the_drafts_is_the_end(
    models: Callable[..., Model], monkeypatch: pytest.MonkeyPatch, start: int
) -> None:
    model, sampler = models(), SAMPLERS["wild"]
    answer = plain(model, sampler=sampler, max_new_tokens=60)
    text = "".join(t.text for t in answer)
    stop = [text[start : start + 3]]
    expected = plain(model, sampler=sampler, max_new_tokens=60, stop=stop)
    assert expected[-1].finish_reason == "stop"
    drafting(monkeypatch, answer, 1.0)
    assert said(list(model.generate(prompt(), sampler=sampler, max_new_tokens=60, stop=stop))) == said(expected)


@pytest.mark.parametrize("n", range(1, 12))
@pytest.mark.parametrize("bound", ["max_new_tokens", "context"])
def test_nothing_is_drafted_beyond_the_last_token(
    models: Callable[..., Model], monkeypatch: pytest.MonkeyPatch, bound: str, n: int
) -> None:
    """The cache has room for no more."""
    limit = len(prompt()) + n
    model = models(context=limit) if bound == "context" else models()
    options = {"sampler": SAMPLERS["wild"], "max_new_tokens": 512 if bound == "context" else n}
    expected = plain(model, **options)
    passes = drafting(monkeypatch, plain(models(), sampler=SAMPLERS["wild"], max_new_tokens=60), 1.0)
    tokens = list(model.generate(prompt(), **options))
    assert said(tokens) == said(expected)
    assert (len(tokens), tokens[-1].finish_reason) == (n, "length")
    assert all(ids + drafts < limit for ids, drafts in passes)


def test_answers_asked_in_turn_and_one_left_alone_do_not_mix(
    models: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, options = models(), {"sampler": SAMPLERS["wild"], "max_new_tokens": 30}
    expected = plain(model, **options)
    drafting(monkeypatch, expected, 0.7)
    first, second, third = (model.generate(prompt(), **options) for _ in range(3))
    got: list[list[Token]] = [[], [], []]
    for n in range(30):
        got[0].append(next(first))
        got[1].append(next(second))
        if n < 5:
            got[2].append(next(third))
        if n == 5:
            third.close()  # type: ignore[attr-defined]
    assert [said(g) for g in got] == [said(expected), said(expected), said(expected[:5])]


def test_token_says_what_was_drafted_for_its_place(
    models: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, options = models(), {"sampler": SAMPLERS["wild"], "max_new_tokens": 20}
    answer = plain(model, **options)
    assert {t.draft for t in answer} == {None}
    passes = drafting(monkeypatch, answer, 1.0)
    tokens = list(model.generate(prompt(), **options))
    assert tokens == answer
    assert sum(t.draft is not None for t in tokens) == sum(drafts for _, drafts in passes)
    assert all(t.draft in (None, t.id) for t in tokens)
    assert tokens[0].draft is None


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_lookup_itself_gives_the_plain_answer(models: Callable[..., Model], sampler: str) -> None:
    model, options = models(context=512), {"sampler": SAMPLERS[sampler], "max_new_tokens": 200}
    assert said(list(model.generate(prompt(), **options))) == said(plain(model, **options))


class Clockwork:
    """A model that says `says(n)` as the n-th id; a pass takes one second, and a tenth for each id read along."""

    def __init__(self, says: Callable[[int], int]) -> None:
        self.says, self.now_s = says, 0.0
        self.config = SimpleNamespace(eos=-1, layers=1)

    def new_cache(self, capacity: int) -> Any:
        return SimpleNamespace(length=0)

    def forward(self, parts: Sequence[Part], every: bool = False, after_layer: Any = None) -> NDArray[np.float32]:
        ((ids, cache),) = parts
        new = len(ids) - cache.length
        self.now_s += 1 + 0.1 * (new - 1)
        cache.length = len(ids)
        logits = np.zeros((new, ROWS), np.float32)
        for row in range(new):
            logits[row, self.says(len(ids) - new + row)] = 9
        return logits if every else logits[-1:]


@pytest.mark.parametrize(
    ("says", "least", "most"),
    [
        (lambda n: 10 + n % 40, 0.2, 0.6),  # again and again the same forty
        (lambda n: random.Random(n).randrange(10, 200), 0.9, 1.03),
        (lambda n: random.Random(n).randrange(10, 20), 0.9, 1.03),
    ],
)
def test_repetition_takes_few_passes_and_its_absence_costs_3_per_cent_at_most(
    monkeypatch: pytest.MonkeyPatch, says: Callable[[int], int], least: float, most: float
) -> None:
    seconds = []
    for lookup in (False, True):
        model = Clockwork(says)
        monkeypatch.setattr("glmcpu.generate.time", SimpleNamespace(perf_counter=lambda m=model: m.now_s))
        tokens = generate(model, None, prompt(), context=512, max_new_tokens=200, lookup=lookup)  # type: ignore[arg-type]
        next(tokens)
        after_prompt_s = model.now_s
        assert [t.id for t in tokens] == [says(n) for n in range(len(prompt()), len(prompt()) + 199)]
        seconds.append(model.now_s - after_prompt_s)
    assert least < seconds[1] / seconds[0] < most


def test_reference_backend_drafts_nothing(models: Callable[..., Model], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its matrix product rounds one row another way than several, so drafts could change a token."""
    model = Model.load(models().path, context=128, threads=1, backend="reference")
    passes = drafting(monkeypatch, plain(model, max_new_tokens=20), 1.0)
    list(model.generate(prompt(), max_new_tokens=20))
    assert sum(drafts for _, drafts in passes) == 0
