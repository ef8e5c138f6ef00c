"""The torch backend: the forward it trains is the forward that runs."""

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
Backend, NoCache = (getattr(import_module("glmcpu.backends.torch"), name) for name in ("Backend", "NoCache"))

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
    """Random weights, the same for both backends: packed as f32, or as tensors."""

    def __init__(self, config: Config, tensors: bool) -> None:
        random, self._tensors = np.random.default_rng(5), tensors
        self.matrices: dict[str, Any] = {
            name: (random.standard_normal(shape) * 0.4).astype(np.float32)
            for name, shape in chatglm.matrices(config).items()
        }
        self.vectors: dict[str, Any] = {
            name: (random.standard_normal(n) * 0.3 + name.endswith("scale")).astype(np.float32)
            for name, n in chatglm.vectors(config).items()
        }
        if tensors:
            for table in (self.matrices, self.vectors):
                table.update({name: torch.from_numpy(array).requires_grad_() for name, array in table.items()})

    @property
    def formats(self) -> dict[str, str]:
        return dict.fromkeys(self.matrices, "f32")

    def weight(self, name: str, O: int, I: int) -> Weight:
        matrix = self.matrices[name]
        bias = self.vectors.get(f"{name}.bias", np.zeros(O, np.float32))
        arrays = {"values": matrix} if self._tensors else formats.load("f32").pack(matrix)
        return Weight("f32", arrays, bias, O, I, name)

    def vector(self, name: str, n: int) -> Any:
        return self.vectors[name]


def models(config: Config = CONFIG) -> tuple[Any, Any]:
    """The reference's and torch's."""
    return ChatGLM(config, Store(config, False), backends.load("reference")), ChatGLM(
        config, Store(config, True), Backend()
    )


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
    backend = model._backend
    caches = [NoCache(len(ids)) if isinstance(backend, Backend) else model.new_cache(len(ids)) for ids in batch]
    return model.forward([Part(ids, cache) for ids, cache in zip(batch, caches, strict=True)], **options)


@pytest.mark.parametrize("parts", [2, 1])
@pytest.mark.parametrize(("S", "contexts"), [(17, (2, 9, 17)), (5, (3,)), (40, (11, 30))])
def test_torch_forward_equals_the_reference(S: int, contexts: tuple[int, ...], parts: int) -> None:
    reference, trained = models(replace(CONFIG, rotary_parts=parts))
    batch = sequences(S, contexts)
    expected = forward(reference, batch, every=True)
    found = forward(trained, batch, every=True).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_wanted_tokens_have_the_scores_they_have_among_all() -> None:
    wanted = np.array([3, 3, 20, 33])
    for model in models():
        batch = sequences(17, (4, 9))
        every, some = (forward(model, batch, **o) for o in ({"every": True}, {"wanted": wanted}))
        np.testing.assert_allclose(some.detach() if torch.is_tensor(some) else some, every[wanted].tolist(), atol=1e-5)


def test_what_fills_a_sequence_up_changes_nothing_before_it() -> None:
    _, model = models()
    (ids,) = sequences(17, (9,))
    alone = forward(model, [ids], every=True)
    filled = forward(model, [[*ids, *[CONFIG.pad] * 6]], every=True)[:17]
    torch.testing.assert_close(filled, alone, rtol=0, atol=1e-5)


def test_gradients_are_those_of_small_changes() -> None:
    _, model = models()
    values = []
    batch = sequences(12, (5, 7))

    def value() -> Any:
        return forward(model, batch, every=True).double().square().mean()

    value().backward()
    for weight in (model._layers[1].qkv, model._layers[0].mlp_down, model._embedding):
        tensor = weight.arrays["values"]
        place = tuple(int(i) for i in np.unravel_index(int(tensor.grad.abs().argmax()), tensor.shape))
        expected = float(tensor.grad[place])
        with torch.no_grad():
            for step in (1e-2, -2e-2, 1e-2):
                tensor[place] += step
                values.append(float(value()))
        found = (values[-3] - values[-2]) / 2e-2
        assert found == pytest.approx(expected, rel=0.03)


def test_sequences_of_several_lengths_are_refused() -> None:
    _, model = models()
    with pytest.raises(UsageError, match="sequences of 9 to 17 tokens"):
        forward(model, [*sequences(17, (4,)), *sequences(9, (4,))])


def test_bfloat16_is_close() -> None:
    reference, _ = models()
    model = ChatGLM(CONFIG, Store(CONFIG, True), Backend(dtype=torch.bfloat16))
    batch = sequences(17, (2, 9))
    expected = forward(reference, batch, every=True)
    found = forward(model, batch, every=True).float().detach().numpy()
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
