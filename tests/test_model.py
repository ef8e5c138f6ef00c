"""Model: opening, ids, text and conversations, against the official answers."""

import dataclasses
import itertools
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import golden
import numpy as np
import pytest
from tiny_checkpoint import write_checkpoint

import glmcpu
from glmcpu import backends, limits, memory, packed
from glmcpu.convert import convert
from glmcpu.errors import DataError, MachineError, UsageError
from glmcpu.model import Model, describe, open_tokenizer
from glmcpu.models import chatglm
from glmcpu.models.chatglm import ChatGLM
from glmcpu.packed import PackedFile
from glmcpu.sampling import Sampler


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model with a tokenizer, both tiny."""
    folder = tmp_path_factory.mktemp("talker")
    return Model.load(convert(write_checkpoint(folder), folder / "talker.safetensors", weights="f16"))


def mini(**options: Any) -> Model:
    return Model.load(golden.packed("tiny-mini", "f32"), **options)


def prompt() -> list[int]:
    ids: list[int] = golden.case("tiny-mini", "gmask")["input_ids"][0].tolist()
    return ids


@pytest.mark.parametrize("backend", golden.BACKENDS)
def test_logits_are_the_official_forward_over_the_ids(backend: str) -> None:
    logits = mini(backend=backend).logits(prompt())
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, golden.case("tiny-mini", "gmask")["logits"], rtol=0, atol=2e-4)


def test_ids_may_be_a_numpy_array() -> None:
    np.testing.assert_array_equal(mini().logits(np.array(prompt(), np.int32)), mini().logits(prompt()))  # type: ignore[arg-type]


def test_context_does_not_bound_logits() -> None:
    assert mini(context=1).logits(prompt()).shape == (24, 320)


def test_generate_goes_to_the_end_of_the_context() -> None:
    tokens = list(mini(context=30).generate(prompt(), sampler=Sampler(temperature=0)))
    official = golden.case("tiny-mini", "gmask")["greedy_ids"].tolist()
    assert [token.id for token in tokens] == official[:6]
    assert tokens[-1].finish_reason == "length"


@pytest.mark.parametrize("context", [0, -1, 2**40, 20.0, "2048"])
def test_context_out_of_range_is_refused(context: Any) -> None:
    with pytest.raises(UsageError, match=f"1 to {limits.CONTEXT:,}"):
        mini(context=context)


@pytest.mark.parametrize(
    ("options", "fact"), [({"threads": 0}, "0"), ({"threads": 10**6}, "1000000"), ({"backend": "gpu"}, "gpu")]
)
def test_option_out_of_range_is_refused(options: dict[str, Any], fact: str) -> None:
    with pytest.raises(UsageError, match=fact):
        mini(**options)


def test_model_is_found_by_its_name_in_the_models_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLMCPU_HOME", str(tmp_path))
    shutil.copyfile(golden.packed("tiny-mini", "f32"), tmp_path / "mine.safetensors")
    assert Model.load("mine").path == tmp_path / "mine.safetensors"
    with pytest.raises(DataError, match="did you mean 'mine'"):
        Model.load("mime")


def test_too_little_memory_is_said_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 10_000)
    with pytest.raises(MachineError, match=r"tiny-mini-f32\.safetensors with a context of 2,048 needs .* MB"):
        mini()


def test_cache_that_cannot_be_allocated_is_the_machines_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mini()

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(np, "zeros", fail)
    with pytest.raises(MachineError, match="the KV cache"):
        model.logits(prompt())


def test_weights_of_another_program_are_refused() -> None:
    with pytest.raises(DataError, match="not a packed model"):
        Model.load(golden.path("tiny-safetensors/model.safetensors"))


def rewritten(tmp_path: Path, **changes: Any) -> Path:
    """tiny-mini packed, with other metadata."""
    file = PackedFile(golden.packed("tiny-mini", "f32"))
    contents = dataclasses.replace(file.contents, **changes)
    path = tmp_path / "changed.safetensors"
    data = b"".join(file.raw(name).tobytes() for name in file.tensors())
    path.write_bytes(packed.header_bytes(contents, file.tensors()) + data)
    return path


def config_with(**changes: Any) -> dict[str, Any]:
    return {**PackedFile(golden.packed("tiny-mini", "f32")).contents.config, **changes}


def test_generation_of_the_future_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"chatglm9.*upgrade"):
        Model.load(rewritten(tmp_path, generation="chatglm9"))


@pytest.mark.parametrize(
    "changes",
    [
        {"layers": "2"},
        {"layers": True},
        {"layers": None},
        {"layers": 2.0},
        {"layers": 10**12},
        {"layers": 3},
        {"channels": 64},
        {"heads": 3},
        {"tied": 1},
        {"tied": False},
        {"epsilon": "x"},
        {"gmask": 320},
        {"unknown": 1},
    ],
)
def test_config_that_does_not_go_with_the_tensors_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    path = rewritten(tmp_path, config=config_with(**changes))
    with pytest.raises(DataError, match=r"changed\.safetensors") as error:
        Model.load(path)
    assert "\n" not in str(error.value)


def test_config_field_that_is_missing_is_refused(tmp_path: Path) -> None:
    config = config_with()
    del config["pad"]
    with pytest.raises(DataError, match="config"):
        Model.load(rewritten(tmp_path, config=config))


def test_damaged_tokenizer_is_refused(tmp_path: Path, talker: Model) -> None:
    data = bytearray(talker.path.read_bytes())
    file = PackedFile(talker.path)
    begin = len(data) - file.size_bytes + file._header.data_begin + file.tensors()["tokenizer"].begin
    data[begin : begin + 4] = b"\xff\xff\xff\xff"
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"damaged\.safetensors: tokenizer"):
        Model.load(path)


def test_without_tokenizer_ids_work_and_text_says_what_is_missing() -> None:
    model = mini()
    assert model.tokenizer is None
    for ask in (model.chat, model.stream_chat, lambda _: model.start_chat()):
        with pytest.raises(DataError, match="--tokenizer"):
            ask("hello")


def test_two_threads_of_the_caller_get_what_each_gets_alone() -> None:
    model = mini(context=64)
    prompts = [prompt(), [9, *prompt()], [8, 7, *prompt()]]
    expected = [[token.id for token in model.generate(ids, max_new_tokens=12)] for ids in prompts]
    found: dict[int, list[int]] = {}

    def work(n: int) -> None:
        found[n] = [token.id for token in model.generate(prompts[n], max_new_tokens=12)]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [found[n] for n in range(len(prompts))] == expected


def test_models_with_other_numbers_of_threads_do_not_disturb_each_other() -> None:
    one, two = mini(threads=1), mini(threads=2)
    np.testing.assert_array_equal(one.logits(prompt()), two.logits(prompt()))


# Random weights repeat themselves when greedy; drawn like this they say all sorts of things.
WILD: dict[str, Any] = {"temperature": 5.0, "top_p": 1.0, "top_k": 0, "seed": 4}


def test_chat_and_stream_chat_agree_and_keep_the_history(talker: Model) -> None:
    response, history = talker.chat("hello", [("hi", "there")], max_length=90, **WILD)
    assert len(response.split()) > 3
    assert history == [("hi", "there"), ("hello", response)]
    steps = list(talker.stream_chat("hello", [("hi", "there")], max_length=90, **WILD))
    assert steps[-1] == (response, history)
    for (before, _), (after, _) in itertools.pairwise(steps):
        assert after.startswith(before)


def test_seed_repeats_a_sampled_chat(talker: Model) -> None:
    first = talker.chat("hello", max_length=60, **WILD)
    assert talker.chat("hello", max_length=60, **WILD) == first
    assert talker.chat("hello", max_length=60, **WILD | {"seed": 5}) != first


def test_session_says_what_chat_says(talker: Model) -> None:
    session = talker.start_chat(sampler=Sampler(**WILD), max_new_tokens=40)
    said = "".join(session.say("hello"))
    assert said == talker.chat("hello", max_new_tokens=40, **WILD)[0]
    assert session.history == [("hello", said)]


def with_eos(model: Model, eos: int) -> Model:
    """The same model with another end token; 0 is as good as none."""
    config = dataclasses.replace(model.config, eos=eos)
    inner = ChatGLM(config, PackedFile(model.path), backends.load("cpu"))
    return Model(model.path, inner, model.tokenizer, model.context, model.cache_bytes)


def test_chat_gives_the_official_responses(tmp_path: Path) -> None:
    """The official stream yields before the last token and shows half characters; ours is certain and goes on."""
    source = golden.path("tiny-real-vocab")
    target = convert(source, tmp_path / "real.safetensors", weights="f32", tokenizer=golden.official_tokenizer())
    model = Model.load(target)
    for case in json.loads((source / "golden.json").read_text())["chat"]:
        asked = with_eos(model, 0 if case["eos"] == "disabled" else case["eos"])
        options = {"max_length": case["max_length"], "do_sample": False}
        response, history = asked.chat(case["query"], case["history"], **options)
        assert response == case["response"]
        assert history == [*map(tuple, case["history"]), (case["query"], response)]
        steps = [step for step, _ in asked.stream_chat(case["query"], case["history"], **options)]
        assert steps[-1] == response
        certain = [step for step in case["stream"] if "\ufffd" not in step[-3:]]
        assert all(response.startswith(step) for step in (*steps, *certain))
        assert len(steps) >= len(set(certain)) - 3


def test_description_counts_what_is_stored() -> None:
    """tiny-mini: 320 x 32 and 2 x (96 + 32 + 128 + 128) x 32 weights, all sizes whole blocks and groups."""
    found = {weights: describe(golden.packed("tiny-mini", weights)) for weights in ("f32", "f16", "int4_g32")}
    assert {weights: d.bits_per_weight for weights, d in found.items()} == {"f32": 32, "f16": 16, "int4_g32": 4.5}
    description = found["int4_g32"]
    assert description.weights == "int4_g32"
    assert description.file_bytes == golden.packed("tiny-mini", "int4_g32").stat().st_size
    assert not description.has_tokenizer
    assert description.config == mini().config
    cache = chatglm.cache_bytes(description.config, 100, "f16")
    assert description.memory_bytes(100) == description.file_bytes + cache


def test_description_of_no_packed_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(DataError, match=r"x\.safetensors"):
        describe(tmp_path / "x.safetensors")


@pytest.mark.parametrize("context", [1, 2, 3, 2048])
@pytest.mark.parametrize("backend", golden.BACKENDS)
def test_kernels_can_be_compiled_before_the_first_question(context: int, backend: str) -> None:
    model = mini(context=context, backend=backend)
    model.compile()
    assert model.is_compiled()


def test_model_is_reached_by_the_public_name() -> None:
    assert glmcpu.Model is Model


def test_a_config_may_name_another_end_token(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", eos_token_id=7)
    assert Model.load(convert(folder, tmp_path / "model.safetensors")).config.eos == 7


def test_a_packed_file_with_the_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    file = PackedFile(convert(write_checkpoint(tmp_path / "checkpoint"), tmp_path / "model.safetensors"))
    other = dict(file.contents.config) | {"bos": 9}
    with pytest.raises(DataError, match="for bos and the model's config 9"):
        open_tokenizer(file.tokenizer() or b"", chatglm.Config(**other), "the file")


@pytest.mark.parametrize("ids", [[1.5, 2], ["5"], [[1, 2]], 7])
def test_ids_that_are_no_whole_numbers_are_refused(ids: Any) -> None:
    with pytest.raises(UsageError, match="whole numbers"):
        mini().logits(ids)
    with pytest.raises(UsageError, match="whole numbers"):
        mini().generate(ids)


def test_an_int8_cache_changes_the_scores_by_little() -> None:
    path = golden.packed("tiny-mini", "f32")
    ids = golden.case("tiny-mini", "gmask")["input_ids"][0].tolist()
    exact = Model.load(path).logits(ids)
    for kind, most in (("f16", 1e-3), ("int8", 0.02)):
        found = Model.load(path, cache=kind).logits(ids)
        assert 0 < np.linalg.norm(found - exact) < most * np.linalg.norm(exact)
    with pytest.raises(UsageError, match="cache='f64': known are f32 f16 int8"):
        Model.load(path, cache="f64")


def test_without_a_context_it_is_the_one_the_model_was_trained_with() -> None:
    model = mini()
    assert model.context == model.config.trained_context
