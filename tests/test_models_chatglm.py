"""What a forward pass promises of itself, whatever the weights."""

from dataclasses import replace
from typing import Any

import golden
import numpy as np
import pytest

from glmcpu import formats
from glmcpu.errors import DataError
from glmcpu.models import chatglm
from glmcpu.models.chatglm import Config, Part, plan

MINI = {"bos": 304, "eos": 305, "mask": 300, "gmask": 301}


def prompt(n: int, seed: int, vocabulary: int = 299) -> list[int]:
    """n ids of tiny-mini's text, [gMASK] and <sop>."""
    return [*np.random.default_rng(seed).integers(6, vocabulary, n).tolist(), MINI["gmask"], MINI["bos"]]


@pytest.mark.parametrize("weights", formats.names())
def test_sequences_in_one_forward_equal_each_alone_to_the_bit(weights: str) -> None:
    model = golden.chatglm("tiny-mini", weights)
    prompts = [prompt(n, seed=n) for n in (0, 1, 17, 40)]
    caches = [model.new_cache(len(ids) + 8) for ids in prompts]
    together = model.forward([Part(*part) for part in zip(prompts, caches, strict=True)], every=True)
    np.testing.assert_array_equal(together, np.concatenate([golden.read(model, ids) for ids in prompts]))
    lonely = [model.new_cache(len(ids) + 8) for ids in prompts]
    for ids, cache in zip(prompts, lonely, strict=True):
        model.forward([Part(ids, cache)])
    for step in range(8):
        prompts = [[*ids, 7 + step * len(ids) % 250] for ids in prompts]
        together = model.forward([Part(*part) for part in zip(prompts, caches, strict=True)])
        for ids, cache, scores in zip(prompts, lonely, together, strict=True):
            np.testing.assert_array_equal(model.forward([Part(ids, cache)])[0], scores)


@pytest.mark.parametrize("weights", formats.names())
def test_prompt_of_one_sequence_beside_a_step_of_another_changes_neither(weights: str) -> None:
    """What a server does: a newcomer's prompt is read in the same pass in which others decode."""
    model = golden.chatglm("tiny-mini", weights)
    first, second = prompt(20, seed=1), prompt(33, seed=2)
    cache, calm = model.new_cache(64), model.new_cache(64)
    for c in (cache, calm):
        model.forward([Part(first, c)])
    expected = model.forward([Part([*first, 9], calm)])[0]
    newcomer = model.new_cache(64)
    both = model.forward([Part([*first, 9], cache), Part(second, newcomer)])
    np.testing.assert_array_equal(both[0], expected)
    np.testing.assert_array_equal(both[1], golden.read(model, second)[-1])
    # And a prompt read between two steps of another sequence.
    expected = model.forward([Part([*first, 9, 10], calm)])[0]
    golden.read(model, prompt(50, seed=3))
    np.testing.assert_array_equal(model.forward([Part([*first, 9, 10], cache)])[0], expected)


@pytest.mark.parametrize("backend", golden.BACKENDS)
@pytest.mark.parametrize("weights", formats.names())
def test_answer_token_by_token_equals_the_answer_at_once(weights: str, backend: str) -> None:
    model = golden.chatglm("tiny-mini", weights, backend)
    ids = prompt(25, seed=4)
    everything = [*ids, *prompt(14, seed=5)[:14]]
    at_once = golden.read(model, everything)[len(ids) - 1 :]
    cache = model.new_cache(len(everything))
    steps = [model.forward([Part(ids, cache)])[0]]
    for n in range(len(ids) + 1, len(everything) + 1):
        steps.append(model.forward([Part(everything[:n], cache)])[0])
    np.testing.assert_allclose(np.stack(steps), at_once, rtol=0, atol=1e-4)


@pytest.mark.parametrize("weights", formats.names())
def test_1_and_2_threads_give_the_same_bits(weights: str) -> None:
    one, two = (golden.model("tiny-mini", weights, threads=n).language_model for n in (1, 2))
    ids = prompt(75, seed=6)
    caches = [m.new_cache(len(ids) + 1) for m in (one, two)]
    for known in (ids, [*ids, 8]):
        first, second = (m.forward([Part(known, c)], every=True) for m, c in zip((one, two), caches, strict=True))
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("backend", golden.BACKENDS)
@pytest.mark.parametrize(
    ("ids", "facts"),
    [
        ([5, 320, 301, 304], ("320",)),
        ([5, -1, 301, 304], ("-1", "320")),
        ([5, 6, 301], ("<sop>", "304")),
        ([5, 6, 304], ("[gMASK]", "301", "[MASK]", "300")),
        ([], ("no ids",)),
    ],
)
def test_ids_the_model_cannot_read_are_refused_with_their_numbers(
    ids: list[int], facts: tuple[str, ...], backend: str
) -> None:
    model = golden.chatglm("tiny-mini", "f32", backend)
    cache = model.new_cache(16)
    with pytest.raises(DataError) as error:
        model.forward([Part(ids, cache)])
    assert all(fact in str(error.value) for fact in facts)
    assert "\n" not in str(error.value)
    assert cache.length == 0


@pytest.mark.parametrize("backend", golden.BACKENDS)
def test_more_ids_than_the_cache_holds_or_no_new_one_are_refused(backend: str) -> None:
    """A kernel that wrote behind the cache would damage memory, not raise."""
    model = golden.chatglm("tiny-mini", "f32", backend)
    ids = prompt(30, seed=7)
    cache = model.new_cache(31)
    with pytest.raises(DataError, match=r"32 ids .* 31"):
        model.forward([Part(ids, cache)])
    model.forward([Part(ids[-20:], cache)])
    with pytest.raises(DataError, match="20"):
        model.forward([Part(ids[-20:], cache)])
    assert cache.length == 20


def test_first_of_several_sop_and_mask_tokens_counts() -> None:
    config = golden.chatglm("tiny-mini", "f32").config
    gmask, sop, mask = config.gmask, config.bos, config.mask
    positions, visible = plan([9, mask, sop, gmask, sop, 9], 0, config)
    assert positions.tolist() == [[0, 0], [1, 0], [3, 1], [3, 2], [3, 3], [3, 4]]  # [gMASK] before [MASK], wherever
    assert visible.tolist() == [2, 2, 3, 4, 5, 6]


def test_every_matrix_and_vector_has_a_name_and_the_tied_model_no_lm_head() -> None:
    config = golden.chatglm("tiny-mini", "f32").config
    names = chatglm.matrices(config)
    assert names["embedding"] == (320, 32)
    assert names["layers.1.qkv"] == (96, 32)
    assert "lm_head" not in names
    assert chatglm.matrices(replace(config, tied=False))["lm_head"] == (320, 32)
    assert len(names) == 1 + 4 * 2
    assert len(chatglm.vectors(config)) == 2 * 4 + 2 * 4 + 2
    assert "embedding.bias" not in chatglm.vectors(config)


def test_memory_of_a_full_cache_is_what_its_arrays_take() -> None:
    for weights, dtype in (("f32", np.float32), ("f16", np.float32), ("int8", np.uint16), ("int4_g32", np.uint16)):
        model = golden.chatglm("tiny-mini", weights)
        cache = model.new_cache(100)
        assert cache.keys.dtype == dtype
        assert chatglm.cache_bytes(model.config, 100, cache.kind) == cache.keys.nbytes + cache.values.nbytes


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"vocabulary": 0}, "vocabulary"),
        ({"layers": 10**9}, "layers"),
        ({"channels": 2**40}, "channels"),
        ({"heads": 3}, "3 heads"),
        ({"heads": 32}, "1 channels a head"),
        ({"heads": 0}, "heads"),
        ({"eos": 320}, "eos"),
        ({"gmask": -1}, "gmask"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"epsilon": float("nan")}, "epsilon"),
        ({"rotary_parts": 3}, "rotary_parts"),
        ({"image_tokens": 321}, "image_tokens"),
    ],
)
def test_hyperparameter_out_of_range_is_named(change: dict[str, Any], fact: str) -> None:
    config: Config = replace(golden.chatglm("tiny-mini", "f32").config, **change)
    with pytest.raises(DataError, match=r"^some\.json: .*") as error:
        chatglm.check(config, "some.json")
    assert fact in str(error.value)
