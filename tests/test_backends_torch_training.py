"""The torch backend for training: the reference's forward with gradients, over packed weights that stay as they are."""

from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from glmcpu import backends, formats
from glmcpu.errors import UsageError
from glmcpu.formats import Weight
from glmcpu.models import Part, chatglm
from glmcpu.models.chatglm import ChatGLM, Config

torch = pytest.importorskip("torch", reason="torch is not installed")
Backend, WholeSequence = (
    getattr(import_module("glmcpu.backends.torch_training"), name) for name in ("Backend", "WholeSequence")
)
F32 = np.float32

CONFIG = Config(
    vocabulary=57,
    channels=24,
    layers=2,
    heads=3,
    feed_forward=40,
    epsilon=1e-5,
    trained_context=64,
    rotary_parts=2,
    bos=50,
    eos=51,
    mask=52,
    gmask=53,
    pad=3,
    image_tokens=0,
    tied=True,
)


class Store:
    """Random weights in a format."""

    def __init__(self, config: Config, weights: str = "f32") -> None:
        random, self._kind = np.random.default_rng(5), weights
        self._matrices = {
            name: (random.standard_normal(shape) * 0.4).astype(F32) for name, shape in chatglm.matrices(config).items()
        }
        self._vectors = {
            name: (random.standard_normal(n) * 0.3 + name.endswith("scale")).astype(F32)
            for name, n in chatglm.vectors(config).items()
        }

    @property
    def formats(self) -> dict[str, str]:
        return dict.fromkeys(self._matrices, self._kind)

    def weight(self, name: str, O: int, I: int) -> Weight:
        bias = self._vectors.get(f"{name}.bias", np.zeros(O, F32))
        return Weight(self._kind, formats.load(self._kind).pack(self._matrices[name]), bias, O, I, name)

    def vector(self, name: str, n: int) -> Any:
        return self._vectors[name]


def models(config: Config = CONFIG, weights: str = "f32", **options: Any) -> tuple[Any, Any]:
    """The reference's and the trainer's."""
    store = Store(config, weights)
    return ChatGLM(config, store, backends.load("reference")), ChatGLM(config, store, Backend("cpu", **options))


def sequences(S: int, contexts: tuple[int, ...]) -> list[list[int]]:
    """Sequences of S ids whose contexts have these lengths."""
    random = np.random.default_rng(S)
    found = []
    for n in contexts:
        ids = random.integers(4, 50, S).tolist()
        ids[n - 2 : n] = [CONFIG.gmask, CONFIG.bos]
        found.append(ids)
    return found


def forward(model: Any, batch: list[list[int]], **options: Any) -> Any:
    return model.forward([Part(ids, model.new_cache(len(ids))) for ids in batch], **options)


@pytest.mark.parametrize("weights", ["f32", "int8", "int4_g32"])
@pytest.mark.parametrize("parts", [2, 1])
@pytest.mark.parametrize(("S", "contexts"), [(17, (2, 9, 17)), (5, (3,)), (40, (11, 30))])
def test_scores_equal_the_reference_ones(S: int, contexts: tuple[int, ...], parts: int, weights: str) -> None:
    reference, trained = models(replace(CONFIG, rotary_parts=parts), weights)
    batch = sequences(S, contexts)
    expected = forward(reference, batch, every=True)
    found = forward(trained, batch, wanted=np.arange(S * len(batch))).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_wanted_tokens_have_the_scores_they_have_among_all() -> None:
    wanted, batch = np.array([3, 3, 20, 33]), sequences(17, (4, 9))
    for model in models():
        every, some = (torch.as_tensor(forward(model, batch, wanted=w)) for w in (np.arange(34), wanted))
        torch.testing.assert_close(some, every[wanted], rtol=0, atol=1e-5)


def test_what_fills_a_sequence_up_changes_nothing_before_it() -> None:
    _, model = models()
    (ids,) = sequences(17, (9,))
    alone = forward(model, [ids], wanted=np.arange(17))
    filled = forward(model, [[*ids, *[CONFIG.pad] * 6]], wanted=np.arange(17))
    torch.testing.assert_close(filled, alone, rtol=0, atol=1e-5)


def prefix(tokens: int, B: int) -> tuple[Any, Any]:
    D = CONFIG.channels // CONFIG.heads
    random = torch.Generator().manual_seed(tokens)
    shape = CONFIG.layers, B, tokens, CONFIG.heads, D
    keys, values = (torch.randn(shape, generator=random).requires_grad_() for _ in range(2))
    return keys, values


def test_a_prefix_is_what_a_cache_begins_with() -> None:
    reference, model = models()
    batch, (keys, values) = sequences(17, (4, 9)), prefix(5, 2)
    model._backend.prefix = keys, values
    found = forward(model, batch, wanted=np.arange(34)).detach().numpy()
    for b, ids in enumerate(batch):
        cache, written = reference.new_cache(5 + len(ids)), reference.new_cache(5)
        for layer in range(CONFIG.layers):
            written.write(layer, *(t[layer, b].detach().numpy() for t in (keys, values)))
        cache.begin_with(written)
        expected = reference.forward([Part(ids, cache)], every=True)
        np.testing.assert_allclose(found[17 * b : 17 * (b + 1)], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("weights", ["f32", "int4_g32"])
def test_gradients_of_a_prefix_are_those_of_small_changes(weights: str) -> None:
    _, model = models(weights=weights)
    batch, model._backend.prefix = sequences(12, (5, 7)), prefix(3, 2)

    def value() -> Any:
        return forward(model, batch, wanted=np.arange(24)).double().square().mean()

    value().backward()
    for tensor in model._backend.prefix:
        place = tuple(int(i) for i in np.unravel_index(int(tensor.grad.abs().argmax()), tensor.shape))
        values = []
        with torch.no_grad():
            for step in (1e-2, -2e-2, 1e-2):
                tensor[place] += step
                values.append(float(value()))
        assert (values[0] - values[1]) / 2e-2 == pytest.approx(float(tensor.grad[place]), rel=0.03)


def gradients(**options: Any) -> list[Any]:
    _, model = models(weights="int8", **options)
    batch, model._backend.prefix = sequences(12, (5, 7)), prefix(3, 2)
    forward(model, batch, wanted=np.arange(24)).square().mean().backward()
    return [tensor.grad for tensor in model._backend.prefix]


def test_layers_that_are_computed_again_give_the_same_gradients() -> None:
    for kept, again in zip(gradients(), gradients(checkpointing=True), strict=True):
        torch.testing.assert_close(kept, again, rtol=0, atol=0)


def test_no_weight_is_kept_as_floats_for_the_backward_pass() -> None:
    """What autograd keeps of a product by a packed weight is the packed weight."""
    _, model = models(weights="int4_g32")
    model._backend.prefix = prefix(3, 1)
    seen: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(tuple(t.shape)) or t, lambda t: t):
        forward(model, sequences(12, (5,)), wanted=np.arange(12))
    assert seen
    matrices = {shape for O, I in chatglm.matrices(CONFIG).values() for shape in ((O, I), (I, O))}
    assert not matrices & set(seen)


def test_sequences_of_several_lengths_are_refused() -> None:
    _, model = models()
    with pytest.raises(UsageError, match="sequences of 9 to 17 tokens"):
        forward(model, [*sequences(17, (4,)), *sequences(9, (4,))], wanted=np.arange(3))


def test_bfloat16_is_close() -> None:
    reference, model = models(dtype="bf16")
    batch = sequences(17, (2, 9))
    expected = forward(reference, batch, every=True)
    found = forward(model, batch, wanted=np.arange(34)).float().detach().numpy()
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
