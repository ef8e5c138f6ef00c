"""Training the embedded model: it learns, and what was trained is what the product runs."""

import itertools
import json
from pathlib import Path

import demo_path  # noqa: F401
import numpy as np
import pytest

from glmcpu.model import Model

pytest.importorskip("torch", reason="torch is not installed")

from demo import __main__ as main
from demo import tokenizer, train
from glmcpu.convert import convert


@pytest.fixture(scope="module")
def model() -> bytes:
    """A tokenizer of few texts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "TEXTS", 2000)
        patch.setattr(tokenizer, "PIECES", 2000)
        return tokenizer.train(1)


def test_training_learns_and_the_product_runs_what_was_trained(
    model: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"CHANNELS": 64, "LAYERS": 2, "HEADS": 2, "FEED_FORWARD": 96}.items():
        monkeypatch.setattr(main, name, value)
    monkeypatch.setattr(train, "TOKENS", 512)
    monkeypatch.setattr(train, "WARM_UP", 5)
    official, config = main.configuration(model)
    losses: list[float] = []
    weights = train.train(
        config,
        main.sequences(model, config),
        steps=60,
        seed=1,
        device="cpu",
        report=lambda step, loss, seconds: losses.append(loss),
    )
    assert losses[-1] < 0.95 * losses[0]  # of which each is mostly the mean of those before
    (tmp_path / "config.json").write_text(json.dumps(official))
    (tmp_path / "ice_text.model").write_bytes(model)
    main.save(weights, tmp_path)
    product = Model.load(convert(tmp_path, tmp_path / "packed.safetensors", weights="f32"))
    batch = list(itertools.islice(main.sequences(model, config), 3))
    trained = train.ChatGLM(config, weights, train.Backend())  # type: ignore[arg-type]
    expected = float(train.loss(trained, batch, "cpu").detach())
    nll, shares = [], []
    for ids, begin in batch:
        scores = product.logits(ids).astype(np.float64)[begin - 1 : -1]
        scores -= np.log(np.exp(scores).sum(axis=1, keepdims=True))
        nll += [-scores[n, token] for n, token in enumerate(ids[begin:])]
        shares += [len(ids[begin:]) ** -0.5] * len(ids[begin:])
    assert np.average(nll, weights=shares) == pytest.approx(expected, rel=0.01)  # weights were rounded to half


def test_the_tokenizer_keeps_digits_and_chinese_characters_apart(model: bytes) -> None:
    found = main.Tokenizer(model, vocab_size=1 << 20)
    for text, pieces in (("4817", 4), ("你好你好", 4)):
        ids = found.encode(text, add_special_tokens=False)
        assert len([i for i in ids if found.decode([i]).strip()]) == pieces
        assert found.decode(ids) == text


def test_batches_are_full_and_of_one_width() -> None:
    lengths = itertools.cycle([5, 16, 17, 40, 130, 190])
    stream = train.batches(([0] * next(lengths), 2) for _ in itertools.count())
    for batch in itertools.islice(stream, 20):
        widths = {train._width(len(ids)) for ids, _ in batch}
        assert len(widths) == 1
        assert len(batch) * widths.pop() <= train.TOKENS
