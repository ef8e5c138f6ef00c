"""The torch backend on a CPU: packed weights decoded by torch, its cache, and steps that are recorded and replayed."""

import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import golden
import numpy as np
import pytest
from tiny_talkers import examples, talker

from glmcpu import backends, cli, formats, store
from glmcpu.engine import Engine
from glmcpu.errors import MachineError, UsageError
from glmcpu.formats import Weight
from glmcpu.model import Model
from glmcpu.models import Part
from glmcpu.models.chatglm import ChatGLM
from glmcpu.packed import PackedFile

torch = pytest.importorskip("torch", reason="torch is not installed")
backend_module, packed, attention = (
    import_module(f"glmcpu.backends.{name}") for name in ("torch", "_torch_weights", "_torch_attention")
)
F32 = np.float32
# Half precision, in parts of the largest score.
TOLERANCE = {"f32": 1e-5, "f16": 4e-3, "bf16": 3e-2}


def weight_of(name: str, O: int, I: int) -> Weight:
    random = np.random.default_rng(O + I)
    arrays, bias = formats.load(name).pack(random.normal(size=(O, I)).astype(F32)), random.normal(size=O).astype(F32)
    for array in (*arrays.values(), bias):
        array.flags.writeable = False  # as out of a mapped file
    return Weight(name, arrays, bias, O, I)


def kept(weight: Weight) -> Weight:
    found: Weight = packed.keep(weight, torch.device("cpu"))
    return found


@pytest.mark.parametrize("name", formats.names())
@pytest.mark.parametrize(("O", "I"), [(1, 1), (15, 31), (17, 33), (50, 100), (32, 160), (3, 300)])
def test_torch_reads_the_same_weights_as_numpy(name: str, O: int, I: int) -> None:
    weight = weight_of(name, O, I)
    ids = np.array([O - 1, 0, O // 2])
    found = packed.rows(kept(weight), torch.from_numpy(ids), torch.float32).numpy()
    assert np.array_equal(found, formats.rows(weight, ids))


@pytest.mark.parametrize("name", formats.names())
@pytest.mark.parametrize("slab", [1, 40 * 96, 1 << 20])
def test_products_and_their_gradients_are_the_plain_ones(name: str, slab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(packed._SLAB, "cpu", slab)
    weight, random = weight_of(name, 70, 96), np.random.default_rng(1)
    plain = formats.unpack(weight)
    x, grad = random.normal(size=(5, 96)).astype(F32), random.normal(size=(5, 70)).astype(F32)
    found = packed.product(torch.from_numpy(x), kept(weight)).numpy()
    np.testing.assert_allclose(found, x @ plain.T + weight.bias, rtol=0, atol=1e-4)
    back = packed.gradient(torch.from_numpy(grad), kept(weight)).numpy()
    np.testing.assert_allclose(back, grad @ plain, rtol=0, atol=1e-4)


def test_on_a_cpu_the_mapped_file_is_read_where_it_lies() -> None:
    weight = weight_of("int4_g32", 32, 64)
    tensor: Any = kept(weight).arrays["codes"]
    assert tensor.data_ptr() == weight.arrays["codes"].ctypes.data


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("weights", formats.names())
def test_scores_equal_the_reference_ones_in_every_format(weights: str, dtype: str) -> None:
    path = golden.packed("tiny-mini", weights)
    ids = golden.case("tiny-mini", "gmask")["input_ids"][0].tolist()
    expected = Model.load(path, backend="reference").logits(ids)
    found = Model.load(path, backend="torch", device="cpu", dtype=dtype).logits(ids)
    assert found.dtype == F32
    assert np.abs(found - expected).max() < TOLERANCE[dtype] * np.abs(expected).max()


def chatglm(record: Callable[..., Any] | None = None) -> ChatGLM:
    backend: Any = backends.load("torch", device="cpu")
    backend._record = record
    file = PackedFile(golden.packed("tiny-mini", "f32"))
    return ChatGLM(golden.chatglm("tiny-mini", "f32").config, file, backend)


class Recorder:
    """What a CUDA graph does: the step again, on whatever its inputs hold by then."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, step: Callable[[], Any]) -> Callable[[], Any]:
        self.recorded += 1

        def again() -> Any:
            self.replayed += 1
            return step()

        return again


def test_a_recorded_step_is_replayed_for_the_tokens_that_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "STRIDE", 16)
    arrays, recorder = golden.case("tiny-mini", "gmask"), Recorder()
    prompt, answer = arrays["input_ids"][0].tolist(), arrays["greedy_ids"].tolist()
    model = chatglm(recorder)
    cache, known, scores = model.new_cache(len(prompt) + len(answer)), list(prompt), []
    for token in [None, *answer[:-1]]:
        known += [] if token is None else [token]
        scores.append(model.forward([Part(known, cache)])[0])
    np.testing.assert_allclose(scores, arrays["step_logits"], rtol=0, atol=2e-4)
    positions = range(len(prompt) + 1, len(prompt) + len(answer))
    assert recorder.replayed == len(positions)
    assert recorder.recorded == len({-(-n // 16) for n in positions})


def test_other_sequences_are_another_recording_and_old_caches_are_let_go() -> None:
    recorder = Recorder()
    model = chatglm(recorder)
    marks = [model.config.gmask, model.config.bos]
    prompts = [[5, 9, *marks], [7, 8, 6, *marks]]
    caches = [model.new_cache(20) for _ in prompts]
    for ids, cache in zip(prompts, caches, strict=True):
        model.forward([Part(ids, cache)])
    both = model.forward([Part([*ids, 5], cache) for ids, cache in zip(prompts, caches, strict=True)])
    alone = model.forward([Part([*prompts[0], 5, 6], caches[0])])
    assert recorder.recorded == 2
    plain = chatglm()
    for ids, row in zip(([*prompts[0], 5], [*prompts[1], 5], [*prompts[0], 5, 6]), [*both, *alone], strict=True):
        cache = plain.new_cache(20)
        plain.forward([Part(ids[: ids.index(marks[1]) + 1], cache)])
        for end in range(ids.index(marks[1]) + 2, len(ids) + 1):
            expected = plain.forward([Part(ids[:end], cache)])[0]
        np.testing.assert_allclose(row, expected, rtol=0, atol=1e-4)
    model.new_cache(20)
    backend: Any = model._backend
    assert backend._recorded is None


def test_cache_holds_what_the_official_one_does() -> None:
    arrays = golden.case("tiny-1d", "gmask")
    model = golden.chatglm("tiny-1d", "f32", "torch")
    ids = arrays["input_ids"][0].tolist()
    cache = model.new_cache(len(ids))
    model.forward([Part(ids, cache)])
    for n in range(model.config.layers):
        for found, expected in zip(cache.plain(n), (arrays["cache_k"][n], arrays["cache_v"][n]), strict=True):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({"device": "gpu"}, "unknown device 'gpu'; devices: cuda, cuda:N, mps, cpu"),
        *(({"device": name}, f"unknown device '{name}'") for name in ("cuda:x", "cuda:", "cpu:", "cpu:0", "mps:1", "")),
        ({"threads": 0}, "--threads 0: this machine runs 1 to"),
        ({"dtype": "f64"}, "dtype='f64': known are f32 f16 bf16"),
        ({"cache": "int8"}, "cache='int8': with the torch backend keys and values are kept as they are computed"),
        ({"cache": "f16", "dtype": "f32"}, "here f32; leave --cache out"),
    ],
)
def test_options_the_backend_lacks_are_refused(options: dict[str, Any], fact: str) -> None:
    with pytest.raises(UsageError, match=fact):
        backends.load("torch", **{"device": "cpu", **options})


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(UsageError, match=r"torch sees no device 'cuda' on this machine; it has: .*cpu"):
        backends.load("torch", device="cuda")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_a_full_device_is_the_machines_failure(error: RuntimeError) -> None:
    forward = backends.load("torch", device="cpu").exclusive()
    with pytest.raises(MachineError, match=r"no memory left on cpu; .*lower --context"), forward:
        raise error


def test_another_failure_of_torch_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="shapes"), backends.load("torch", device="cpu").exclusive():
        raise RuntimeError("shapes do not fit")


@pytest.mark.parametrize("weights", ["int8", "int4_g32"])
def test_what_torch_compiles_gives_the_same_products(weights: str, recwarn: pytest.WarningsRecorder) -> None:
    """Where there is no C++ compiler a notice says so, and the plain operations do it."""
    weight, x = weight_of(weights, 40, 64), torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    for T in (1, 3):
        found = packed.product(x[:T], kept(weight), compiled=True)
        torch.testing.assert_close(found, packed.product(x[:T], kept(weight)), rtol=0, atol=1e-4)


def test_without_a_compiler_a_notice_says_so_and_the_product_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_plain_only", set())

    def fail(*_: object) -> Callable[..., Any]:
        def call(*_: object) -> Any:
            raise torch._dynamo.exc.TorchDynamoException("no compiler here\nand more")

        return call

    monkeypatch.setattr(packed, "_compiler", fail)
    weight, x = weight_of("int4_g32", 40, 64), torch.ones(1, 64)
    with pytest.warns(Warning, match="torch cannot compile here, which is slower: no compiler here$"):
        found = packed.product(x, kept(weight), compiled=True)
    torch.testing.assert_close(found, packed.product(x, kept(weight)), rtol=0, atol=1e-4)
    torch.testing.assert_close(packed.product(x, kept(weight), compiled=True), found)


ON_TORCH = ("--backend", "torch", "--device", "cpu")


def command(capfd: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert cli.main([str(argument) for argument in arguments]) == 0
    return capfd.readouterr().out


def test_chat_on_torch_gives_the_answer_of_the_reference(capfd: pytest.CaptureFixture[str]) -> None:
    ask = ("chat", store.embedded(), "-p", "What is 6 + 7?", "--greedy")
    assert command(capfd, *ask, *ON_TORCH) == command(capfd, *ask, "--backend", "reference")


def test_eval_on_torch_gives_the_numbers_of_the_reference(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ask = ("eval", talker("f32"), "--text", examples(tmp_path), "--json")
    found, expected = (
        json.loads(command(capfd, *ask, *options).splitlines()[-1])["models"][0]
        for options in (ON_TORCH, ("--backend", "reference"))
    )
    assert found["perplexity"] == pytest.approx(expected["perplexity"], rel=1e-5)
    compared = json.loads(command(capfd, *ask, "--reference", talker("f32"), *ON_TORCH).splitlines()[-1])
    assert compared["models"][0]["kl"]["top1"] == 1


def test_batch_on_torch_answers_many_at_once_as_one_by_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    questions = tmp_path / "in.jsonl"
    questions.write_text("".join(json.dumps({"prompt": "hello " * n}) + "\n" for n in (1, 3, 2, 5)))
    said = []
    for parallel in (1, 3):
        out = tmp_path / f"{parallel}.jsonl"
        command(
            capfd, "batch", questions, out, "-m", talker("f32"), "--greedy", "-n", 6, "--parallel", parallel, *ON_TORCH
        )
        said.append([json.loads(line)["response"] for line in out.read_text().splitlines()])
    assert said[0] == said[1]


def test_a_server_on_torch_pauses_a_prompt_for_the_answers_that_run() -> None:
    """A step inside another forward, as the engine does it between two layers of a prompt."""
    model = Model.load(talker("f32"), backend="torch", device="cpu", context=64)
    assert model.tokenizer
    prompts = [list(model.tokenizer.encode(text)) for text in ("hello", "你好 你好", "the quick brown fox")]
    alone = [[t.id for t in model.generate(ids, max_new_tokens=9)] for ids in prompts]
    with Engine(model, parallel=3, pause_s=0.0) as engine:
        streams = [engine.submit(ids, max_new_tokens=9) for ids in prompts]
        assert [[t.id for t in stream] for stream in streams] == alone


def test_without_torch_the_backend_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [m for m in sys.modules if m.startswith(("glmcpu.backends.torch", "glmcpu.backends._torch"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UsageError, match=r'needs PyTorch, .*pip install "glmcpu\[torch\]"'):
        backends.load("torch")


@pytest.mark.parametrize("options", [{"device": "cpu"}, {"dtype": "f16"}])
def test_other_backends_have_no_devices(options: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="is for the torch backend, and cpu runs on the CPU"):
        Model.load(talker("f32"), **options)  # type: ignore[arg-type]


def test_threads_may_share_a_model_on_torch() -> None:
    model = Model.load(talker("f32"), backend="torch", device="cpu", context=64)
    assert model.tokenizer
    prompts = [list(model.tokenizer.encode(text)) for text in ("hello", "你好 你好")]
    alone = [[t.id for t in model.generate(ids, max_new_tokens=20)] for ids in prompts]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(2) as pool:
            runs = pool.map(lambda ids: [t.id for t in model.generate(ids, max_new_tokens=20)], prompts * 10)
        assert list(runs) == alone * 10
    finally:
        sys.setswitchinterval(before)


def test_where_torch_refuses_to_compile_at_all_the_plain_operations_do_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_plain_only", set())

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("torch.compile is not supported on this Python")

    monkeypatch.setattr(torch, "compile", refuse)
    packed._compiler.cache_clear()
    weight, x = weight_of("int3_g32", 40, 64), torch.ones(3, 64)
    with pytest.warns(Warning, match="torch cannot compile here, which is slower: torch.compile is not supported"):
        found = packed.product(x, kept(weight), compiled=True)
    torch.testing.assert_close(found, packed.product(x, kept(weight)), rtol=0, atol=1e-4)
