"""Adapters at work: a prefix in every cache, and low-rank paths beside packed weights, on every backend."""

from pathlib import Path
from typing import Any

import golden
import numpy as np
import pytest
from tiny_adapter import SHAPES, config, lora_tensors, prefix_tensors, write_lora, write_prefix
from tiny_talkers import talker

from glmcpu import adapters, backends, formats, memory
from glmcpu.cache import KINDS, KVCache
from glmcpu.convert import convert
from glmcpu.engine import Engine
from glmcpu.errors import DataError, MachineError, UsageError
from glmcpu.model import Model
from glmcpu.models import Part
from glmcpu.models.chatglm import ChatGLM
from glmcpu.packed import PackedFile
from glmcpu.sampling import Sampler

F32 = np.float32
every_backend = pytest.mark.parametrize("backend", golden.BACKENDS)


def ids_of(model: Model, text: str = "hello 你好") -> list[int]:
    assert model.tokenizer
    return list(model.tokenizer.encode(text))


@pytest.mark.parametrize("checkpoint", ["tiny-ptuning", "tiny-ptuning-proj"])
@pytest.mark.parametrize("case", ["gmask", "mask_mid"])
@every_backend
def test_an_official_prefix_gives_the_official_logits(checkpoint: str, case: str, backend: str, tmp_path: Path) -> None:
    base = convert(golden.path(f"{checkpoint}/base"), tmp_path / "base.safetensors", weights="f32")
    model = Model.load(base, backend=backend, adapter=golden.path(f"{checkpoint}/ptuning_checkpoint"))
    arrays = golden.case(checkpoint, case)
    prompt, answer = arrays["input_ids"][0].tolist(), arrays["greedy_ids"].tolist()
    np.testing.assert_allclose(model.logits(prompt), arrays["logits"], rtol=0, atol=2e-4)
    cache, known, steps = model.language_model.new_cache(len(prompt) + len(answer)), list(prompt), []
    for token in [None, *answer[:-1]]:
        known += [] if token is None else [token]
        steps.append(model.language_model.forward([Part(known, cache)])[0])
    np.testing.assert_allclose(steps, arrays["step_logits"], rtol=0, atol=2e-4)
    assert np.argmax(steps, axis=1).tolist() == answer


@pytest.mark.parametrize("weights", ["f32", "int4_g32"])
@every_backend
def test_lora_beside_the_weights_is_lora_in_them(backend: str, weights: str, tmp_path: Path) -> None:
    """With packed weights the product is that of the packed ones plus the thin one, in any format."""
    folder = write_lora(tmp_path / "lora")
    beside = Model.load(talker(weights), backend=backend, adapter=folder)
    ids = ids_of(beside)
    plain = Model.load(talker(weights), backend="reference")
    low_rank = adapters.read(folder, plain.config).low_rank
    file: Any = PackedFile(talker(weights))

    class Merged:
        formats = file.formats
        vector = file.vector

        def weight(self, name: str, O: int, I: int) -> Any:
            stored = file.weight(name, O, I)
            whole = formats.unpack(stored)
            if name in low_rank:
                whole = whole + low_rank[name].up @ low_rank[name].down
            return formats.Weight("f32", formats.load("f32").pack(whole), stored.bias, O, I, name)

    merged: Any = ChatGLM(plain.config, Merged(), backends.load("reference"))
    expected = merged.forward([Part(ids, merged.new_cache(len(ids)))], every=True)
    # Beside quantized weights the thin matrices are halves; the CPU backend rounds activations too.
    near = 1e-5 if weights == "f32" else 0.1 if backend == "cpu" else 5e-3
    tolerance = near * np.abs(expected).max()
    np.testing.assert_allclose(beside.logits(ids), expected, rtol=0, atol=tolerance)
    assert np.abs(plain.logits(ids) - expected).max() > 0.1


@every_backend
def test_tokens_read_one_by_one_have_the_scores_they_have_at_once(backend: str, tmp_path: Path) -> None:
    """Through the repeated steps of the CPU backend too; a prefix that ends inside a block of 128 positions."""
    for adapter in (write_prefix(tmp_path / "prefix", prefix_tensors(5)), write_lora(tmp_path / "lora")):
        model = Model.load(talker("f32"), backend=backend, adapter=adapter)
        prompt = ids_of(model)
        everything = [*prompt, 9, 10, 11]
        cache = model.language_model.new_cache(len(everything))
        found = [model.language_model.forward([Part(prompt, cache)])[0]]
        for n in range(len(prompt) + 1, len(everything) + 1):
            found.append(model.language_model.forward([Part(everything[:n], cache)])[0])
        expected = model.logits(everything)[len(prompt) - 1 :]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_adapters_work_in_half_precision_on_torch(dtype: str, tmp_path: Path) -> None:
    """What LoRA adds is float32, and the cache is not."""
    pytest.importorskip("torch", reason="torch is not installed")
    for adapter in (write_prefix(tmp_path / "prefix"), write_lora(tmp_path / "lora", lora_tensors(SHAPES))):
        exact = Model.load(talker("int8"), backend="reference", adapter=adapter)
        found = Model.load(talker("int8"), backend="torch", device="cpu", dtype=dtype, adapter=adapter)
        expected = exact.logits(ids_of(exact))
        near = {"f16": 0.01, "bf16": 0.1}[dtype] * np.abs(expected).max()
        np.testing.assert_allclose(found.logits(ids_of(exact)), expected, rtol=0, atol=near)


@pytest.mark.parametrize("threads", [1, 2])
def test_lora_on_all_kinds_holds_for_a_prompt_of_several_slabs(threads: int, tmp_path: Path) -> None:
    """The last matrix of a layer writes to its tokens' share of the result."""
    folder = write_lora(tmp_path / "lora", lora_tensors(SHAPES))
    ids = [5 + i % 200 for i in range(1100)]
    exact = Model.load(talker("f32"), backend="reference", adapter=folder)
    ids += [exact.config.gmask, exact.config.bos]
    found = Model.load(talker("f32"), adapter=folder, threads=threads).logits(ids)
    expected = exact.logits(ids)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("P", [1, 16, 128, 130])
def test_a_prefix_reads_back_as_it_was_written(kind: str, P: int) -> None:
    L, H, D = 2, 3, 24
    random = np.random.default_rng(P)
    numbers = random.normal(size=(2, L, P, H, D)).astype(np.float16).astype(F32)
    written, cache = KVCache(L, H, D, P, kind), KVCache(L, H, D, P + 40, kind)
    for layer in range(L):
        written.write(layer, numbers[0, layer], numbers[1, layer])
    cache.begin_with(written)
    assert (cache.prefix, cache.capacity, cache.length) == (P, 40, 0)
    for layer in range(L):
        for found, exact in zip(cache.plain(layer), numbers[:, layer], strict=True):
            half_a_step = np.abs(exact).max(axis=2, keepdims=True) * F32(0.501 / 127)
            assert (np.abs(found - exact) <= (half_a_step if kind == "int8" else 0)).all()


def test_an_int8_cache_keeps_a_prefix_close(tmp_path: Path) -> None:
    folder = write_prefix(tmp_path / "prefix", prefix_tensors(20))
    exact = Model.load(talker("f32"), adapter=folder)
    ids = ids_of(exact)
    found = Model.load(talker("f32"), adapter=folder, cache="int8").logits(ids)
    assert np.abs(found - exact.logits(ids)).max() < 0.03 * np.abs(exact.logits(ids)).max()


def test_answers_of_an_engine_are_those_of_the_model(tmp_path: Path) -> None:
    model = Model.load(talker("int4_g32"), adapter=write_prefix(tmp_path / "prefix", prefix_tensors(7)), context=128)
    prompts = [ids_of(model, text) for text in ("hello", "你好 你好", "the quick brown fox")]
    alone = [[t.id for t in model.generate(ids, max_new_tokens=12)] for ids in prompts]
    with Engine(model, parallel=3) as engine:
        streams = [engine.submit(ids, max_new_tokens=12) for ids in prompts]
        assert [[t.id for t in stream] for stream in streams] == alone


def test_the_prefix_takes_room_in_memory_and_none_of_the_context(tmp_path: Path) -> None:
    plain = Model.load(talker("int4_g32"), context=100)
    model = Model.load(talker("int4_g32"), context=100, adapter=write_prefix(tmp_path / "prefix", prefix_tensors(128)))
    assert model.context == 100
    assert model.cache_bytes(100) == plain.cache_bytes(228)
    assert model.adapter is not None
    assert model.adapter.about == "prefix: 128 tokens"
    cache = model.language_model.new_cache(100)
    assert (cache.capacity, cache.prefix) == (100, 128)
    tokens = list(model.generate(ids_of(model), sampler=Sampler(temperature=0), max_new_tokens=100))
    assert len(tokens) + len(ids_of(model)) <= 100


def test_an_adapter_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    odd = {"transformer.prefix_encoder.embedding.weight": np.zeros((5, 99), F32)}
    with pytest.raises(DataError, match="99"):
        Model.load(talker("f32"), adapter=write_prefix(tmp_path / "prefix", odd))
    with pytest.raises(DataError, match="no such"):
        Model.load(talker("f32"), adapter=tmp_path / "absent")
    with pytest.raises(UsageError, match=r"lora_alpha=8.* name them with adapter"):
        Model.load(talker("f32"), lora_alpha=8)


def test_the_memory_of_the_prefix_is_asked_for_before_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_prefix(tmp_path / "prefix", prefix_tensors(2048))
    needed = talker("f32").stat().st_size + Model.load(talker("f32"), context=64).cache_bytes(64)
    monkeypatch.setattr(memory, "available_bytes", lambda: needed + 1000)
    Model.load(talker("f32"), context=64)
    with pytest.raises(MachineError, match="needs"):
        Model.load(talker("f32"), context=64, adapter=folder)


def test_config_of_the_tiny_adapter_is_that_of_the_talker() -> None:
    assert config() == Model.load(talker("f32")).config
