"""LoRA: the change of every product is that of the trainer, and whatever is something else is refused by name."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_adapter import OURS, SHAPES, config, lora_tensors, module, random, write_lora
from tiny_checkpoint import C, L, Tensors, official_tensors
from torch_files import BF16, save_torch_legacy

from glmcpu import adapters, limits
from glmcpu.adapters import LowRank
from glmcpu.errors import DataError

Floats = NDArray[np.float32]
BASE = "base_model.model."
A0, B0 = (f"{BASE}{module(0)}.lora_{side}.weight" for side in "AB")


def read(folder: Path, lora_alpha: float | None = None) -> dict[str, LowRank]:
    return dict(adapters.read(folder, config(), lora_alpha=lora_alpha).low_rank)


def refused(folder: Path) -> str:
    with pytest.raises(DataError) as error:
        adapters.read(folder, config())
    assert str(error.value).isprintable()
    return str(error.value)


def change(low_rank: LowRank) -> Floats:
    """What is added to the matrix."""
    assert low_rank.up.dtype == low_rank.down.dtype == np.float32
    assert low_rank.up.shape[1] == low_rank.down.shape[0] == low_rank.rank
    return low_rank.up @ low_rank.down


def check(
    low_rank: dict[str, LowRank], tensors: Tensors, scale: float, start: str = BASE, end: str = ".weight"
) -> None:
    """Every pair of tensors is there, as scale * B A of its matrix."""
    assert len(low_rank) == len(tensors) // 2
    for n in range(L):
        for part in SHAPES:
            name = f"{start}{module(n, part)}.lora_"
            if f"{name}A{end}" in tensors:
                a, b = (np.float64(tensors[f"{name}{side}{end}"]) for side in "AB")
                ours = low_rank[f"layers.{n}.{OURS[part]}"]
                np.testing.assert_allclose(change(ours), scale * (b @ a), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("end", [".weight", ".default.weight", ".my-adapter_2.weight"])
@pytest.mark.parametrize("start", ["", BASE])
@pytest.mark.parametrize("file", ["adapter_model.bin", "adapter_model.safetensors"])
def test_names_and_files_of_peft_are_read(file: str, start: str, end: str, tmp_path: Path) -> None:
    tensors = lora_tensors(SHAPES, start=start, end=end)
    folder = write_lora(tmp_path, tensors, file)
    adapter = adapters.read(folder, config())
    check(dict(adapter.low_rank), tensors, 32 / 4, start, end)
    assert adapter.prefix is None
    assert (adapter.about, adapter.notes) == ("LoRA: rank 4 on 8 matrices", ())
    assert [path.name for path in adapter.files] == ["adapter_config.json", file]


def test_legacy_file_is_read(tmp_path: Path) -> None:
    write_lora(tmp_path)
    save_torch_legacy(tmp_path / "adapter_model.bin", lora_tensors(), ordered=True)
    check(read(tmp_path), lora_tensors(), 8)


@pytest.mark.parametrize("kind", ["f16", "bf16", "f64"])
def test_tensors_may_be_of_any_float_type(kind: str, tmp_path: Path) -> None:
    exact = {name: np.float32(np.float16(array)) for name, array in lora_tensors().items()}
    for array in exact.values():
        array.view(np.uint32)[...] &= 0xFFFF0000
    stored: Tensors = {name: array.astype(np.float16 if kind == "f16" else np.float64) for name, array in exact.items()}
    if kind == "bf16":
        stored = {name: (array.view(np.uint32) >> 16).astype(np.uint16).view(BF16) for name, array in exact.items()}
    check(read(write_lora(tmp_path, stored)), exact, 8)


@pytest.mark.parametrize("part", SHAPES)
def test_each_matrix_may_be_the_only_one(part: str, tmp_path: Path) -> None:
    low_rank = read(write_lora(tmp_path, lora_tensors([part])))
    assert list(low_rank) == [f"layers.{n}.{OURS[part]}" for n in range(L)]


def test_some_layers_may_be_all(tmp_path: Path) -> None:
    adapter = adapters.read(write_lora(tmp_path, {A0: random(4, C), B0: random(3 * C, 4)}), config())
    assert list(adapter.low_rank) == ["layers.0.qkv"]
    assert adapter.about == "LoRA: rank 4 on 1 matrix"


def test_without_a_description_the_rank_is_that_of_the_tensors_and_alpha_is_assumed_aloud(tmp_path: Path) -> None:
    """What the trainer mymusise/ChatGLM-Tuning leaves in checkpoint-N."""
    (write_lora(tmp_path, lora_tensors(r=2, end=".default.weight")) / "adapter_config.json").unlink()
    adapter = adapters.read(tmp_path, config())
    check(dict(adapter.low_rank), lora_tensors(r=2, end=".default.weight"), 16, end=".default.weight")
    assert adapter.about == "LoRA: rank 2 on 2 matrices"
    (note,) = adapter.notes
    assert "adapter_config.json" in note
    assert "32" in note
    assert "--lora-alpha" in note
    assert adapters.read(tmp_path, config(), lora_alpha=4).notes == ()
    check(read(tmp_path, lora_alpha=4), lora_tensors(r=2, end=".default.weight"), 2, end=".default.weight")


# --- the fused matrix of peft 0.2 ---


def fused(enabled: list[bool], groups: int, r: int = 4, flat: bool = False) -> tuple[Tensors, list[Floats]]:
    """Tensors of that kind, and what they add to the matrix of each layer: output by output."""
    g, third, tensors, added = sum(enabled), C, Tensors(), []
    for n in range(L):
        a, b = random(g * r, C, seed=n), random(g * third, g * r // groups, seed=n)
        tensors |= {
            f"{BASE}{module(n)}.lora_A.weight": a,
            f"{BASE}{module(n)}.lora_B.weight": b if flat else b[..., None],
        }
        delta, row = np.zeros((3 * C, C), np.float32), 0
        for part, on in enumerate(enabled):
            for output in range(part * third, (part + 1) * third) if on else ():
                group = row // (g * third // groups)
                for w in range(g * r // groups):
                    delta[output] += b[row, w] * a[group * (g * r // groups) + w]
                row += 1
        added.append(delta)
    return tensors, added


@pytest.mark.parametrize(
    ("enabled", "groups", "flat"),
    [
        ([True, False, True], 2, False),
        ([True, False, True], 2, True),
        ([True, True, False], 2, False),
        ([False, True, True], 2, False),
        ([True, True, True], 2, False),  # peft convolves in two groups whatever is enabled
        ([True, False, False], 2, False),
        ([True, True, True], 3, True),  # loralib in as many as are
        ([True, True, True], 3, False),
        ([False, False, True], 1, True),
    ],
)
def test_fused_matrix_is_changed_in_contiguous_thirds(
    enabled: list[bool], groups: int, flat: bool, tmp_path: Path
) -> None:
    tensors, added = fused(enabled, groups, flat=flat)
    adapter = adapters.read(write_lora(tmp_path, tensors, enable_lora=enabled, fan_in_fan_out=True), config())
    assert (adapter.about, adapter.notes) == ("LoRA: rank 4 on 2 matrices", ())
    for n, delta in enumerate(added):
        np.testing.assert_allclose(change(adapter.low_rank[f"layers.{n}.qkv"]), 8 * delta, rtol=1e-4, atol=1e-4)


def test_middle_third_of_the_usual_kind_is_left_alone(tmp_path: Path) -> None:
    low_rank = read(write_lora(tmp_path, fused([True, False, True], 2)[0], enable_lora=[True, False, True]))
    rows = np.flatnonzero(low_rank["layers.0.qkv"].up.any(axis=1))
    assert list(rows) == [*range(C), *range(2 * C, 3 * C)]


def test_fused_matrix_without_a_description_is_told_by_its_shape_and_said_aloud(tmp_path: Path) -> None:
    tensors, added = fused([True, False, True], 2)
    (write_lora(tmp_path, tensors) / "adapter_config.json").unlink()
    adapter = adapters.read(tmp_path, config(), lora_alpha=8)
    np.testing.assert_allclose(change(adapter.low_rank["layers.1.qkv"]), 2 * added[1], rtol=1e-4, atol=1e-4)
    assert len(adapter.notes) == 1
    assert "[true, false, true]" in adapter.notes[0]


def test_ordinary_matrix_under_an_old_description_is_an_ordinary_one(tmp_path: Path) -> None:
    check(read(write_lora(tmp_path, enable_lora=[True, False, True])), lora_tensors(), 8)


@pytest.mark.parametrize(
    ("enabled", "shape", "facts"),
    [
        ([True, False, True], (3 * C, 4, 1), ("[96, 4, 1]", "[64, 4, 1]", "[true, false, true]")),
        ([True, False, True], (2 * C, 3, 1), ("[64, 3, 1]", "[64, 4, 1]")),
        ([True, False, True], (2 * C, 4, 2), ("[64, 4, 2]",)),
        ([True, False, True], (2 * C, 4, 1, 1), ("[64, 4, 1, 1]",)),
        ([True, False, True], (2 * C,), ("[64]",)),
        ([True, False, True, True, True], (3 * C, 4, 1), ("5 parts", "96 outputs")),
    ],
)
def test_fused_matrix_that_does_not_fit_is_refused(
    enabled: list[bool], shape: tuple[int, ...], facts: tuple[str, ...], tmp_path: Path
) -> None:
    tensors = fused([True, False, True], 2)[0] | {B0: random(*shape)}
    message = refused(write_lora(tmp_path, tensors, enable_lora=enabled))
    assert all(fact in message for fact in facts), message


# --- refused ---

VECTOR = random(3 * C)
EXTRA: list[tuple[str, tuple[str, ...]]] = [
    (f"{BASE}{module(0)}.lora_magnitude_vector", ("DoRA", "merge_and_unload")),
    (f"{BASE}{module(0)}.lora_magnitude_vector.default.weight", ("DoRA",)),
    (f"{BASE}{module(0)}.lora_E", ("AdaLoRA", "merge_and_unload")),
    (f"{BASE}transformer.word_embeddings.lora_embedding_A", ("embedding", "merge_and_unload")),
    (f"{BASE}transformer.word_embeddings.lora_A.weight", ("embedding", "merge_and_unload")),
    (f"{BASE}lm_head.lora_A.weight", ("lm_head", "merge_and_unload")),
    (f"{BASE}{module(0)}.bias", ("bias", "merge_and_unload")),
    (f"{BASE}{module(0)}.lora_B.bias", ("bias", "merge_and_unload")),
    (f"{BASE}{module(0)}.weight", ("weight in full", "merge_and_unload")),
    (f"{BASE}{module(0)}.base_layer.weight", ("weight in full",)),
    (f"{BASE}lm_head.modules_to_save.weight", ("weight in full",)),
    (f"{BASE}transformer.layers.0.input_layernorm.weight", ("weight in full",)),
    (f"{BASE}transformer.encoder.layers.0.self_attention.query_key_value.lora_A.weight", ("ChatGLM2",)),
    (f"{BASE}model.layers.0.self_attn.q_proj.lora_A.weight", ("no matrix", "query_key_value", "own adapter")),
    (f"{BASE}transformer.layers.0.attention.q.lora_A.weight", ("no matrix",)),
    (f"{BASE}transformer.layers.00.attention.dense.lora_A.weight", ("no matrix",)),
    (f"{BASE}transformer.layers.2.attention.dense.lora_A.weight", ("layer 2", "2 layers", "trained on")),
    (f"{BASE}{module(0)}.lora_A.default.weight", ("one and the same", "one adapter")),
    (f"{BASE}{module(0, 'attention.dense')}.lora_A.weight", ("lora_B", "fetch")),
    (f"{BASE}{module(0, 'attention.dense')}.lora_B.weight", ("lora_A", "fetch")),
]


@pytest.mark.parametrize(("name", "facts"), EXTRA)
def test_tensor_that_is_not_read_is_named_with_the_way_out(name: str, facts: tuple[str, ...], tmp_path: Path) -> None:
    message = refused(write_lora(tmp_path, lora_tensors() | {name: VECTOR}))
    assert all(fact in message for fact in (*facts, name, "adapter_model.bin")), message


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({A0: random(4, C + 1)}, ("[4, 33]", "[rank, 32]", "trained on")),
        ({A0: random(4, C, 1)}, ("[4, 32, 1]", "[rank, 32]")),
        ({A0: random(4)}, ("[4]", "[rank, 32]")),
        ({A0: random(2, C)}, ("[2, 32]", "rank 4", "one folder")),
        ({B0: random(3 * C + 1, 4)}, ("[97, 4]", "[96, 4]", "[4, 32]", "trained on")),
        ({B0: random(3 * C, 3)}, ("[96, 3]", "[96, 4]")),
        ({B0: random(3 * C, 4, 1)}, ("[96, 4, 1]", "[96, 4]")),
        ({B0: np.zeros((3 * C, 4), np.int8)}, ("i8", "floats")),
        ({A0: np.full((4, C), np.nan, np.float32)}, ("lora_A", "NaN or infinity")),
        ({B0: np.full((3 * C, 4), -np.inf, np.float32)}, ("lora_B", "NaN or infinity")),
        ({B0: np.full((3 * C, 4), 3e38, np.float32)}, ("lora_B", "overflows", "8")),
    ],
)
def test_tensors_that_do_not_fit_are_refused_with_both_shapes(
    changes: Tensors, facts: tuple[str, ...], tmp_path: Path
) -> None:
    message = refused(write_lora(tmp_path, lora_tensors() | changes))
    assert all(fact in message for fact in (*facts, "adapter_model.bin", module(0))), message


def test_rank_above_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LORA_RANK", 3)
    (write_lora(tmp_path) / "adapter_config.json").unlink()
    message = refused(tmp_path)
    assert "[4, 32]" in message
    assert "1 to 3" in message


def test_rank_that_the_parts_do_not_share_is_refused(tmp_path: Path) -> None:
    tensors = {A0: random(5, C), B0: random(2 * C, 5, 1)}
    assert "2 parts" in refused(write_lora(tmp_path, tensors, enable_lora=[True, False, True], r=None))


def test_whole_model_with_lora_beside_it_is_refused(tmp_path: Path) -> None:
    message = refused(write_lora(tmp_path, official_tensors() | lora_tensors(start="")))
    assert "weight in full" in message
