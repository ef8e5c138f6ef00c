"""P-Tuning v2: the prefix an official checkpoint stands for, and every file that stands for none."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import golden
import numpy as np
import pytest
from tiny_adapter import PREFIX, config, prefix_tensors, random, write_prefix
from tiny_checkpoint import C, H, L, Tensors, official_tensors
from torch_files import BF16, save_index, save_safetensors, save_torch

from glmcpu import adapters, limits, memory
from glmcpu.adapters import Prefix, ptuning
from glmcpu.convert import chatglm as official
from glmcpu.errors import DataError, GlmcpuError, MachineError

EMBEDDING = f"{PREFIX}.embedding.weight"
SECOND = f"{PREFIX}.trans.2.weight"


def read(folder: Path) -> Prefix:
    prefix = adapters.read(folder, config()).prefix
    assert prefix is not None
    return prefix


def refused(folder: Path, kind: type[GlmcpuError] = DataError) -> str:
    with pytest.raises(kind) as error:
        adapters.read(folder, config())
    assert str(error.value).isprintable()
    return str(error.value)


def naive(tensors: Tensors) -> tuple[Any, Any]:
    """Keys and values [layer][token][head], element by element."""
    rows = np.float64(tensors[EMBEDDING])
    if SECOND in tensors:
        first, first_bias, second, second_bias = (
            np.float64(tensors[f"{PREFIX}.trans.{name}"]) for name in ("0.weight", "0.bias", "2.weight", "2.bias")
        )
        rows = np.tanh(rows @ first.T + first_bias) @ second.T + second_bias
    D = C // H
    keys, values = np.empty((2, L, len(rows), H, D))
    for p, row in enumerate(rows):
        for layer in range(L):
            for head in range(H):
                at = 2 * layer * C + head * D
                keys[layer, p, head], values[layer, p, head] = row[at : at + D], row[at + C : at + C + D]
    return keys, values


@pytest.mark.parametrize("name", ["tiny-ptuning", "tiny-ptuning-proj"])
def test_keys_and_values_are_those_of_the_official_model(name: str) -> None:
    table, tokenizer_config = (
        json.loads(golden.path(f"{name}/base/{file}").read_text()) for file in ("config.json", "tokenizer_config.json")
    )
    model = official.read_config(table, tokenizer_config, "config.json")
    adapter = adapters.read(golden.path(f"{name}/ptuning_checkpoint"), model)
    assert adapter.about == "prefix: 8 tokens"
    assert adapter.prefix is not None
    with np.load(golden.path(f"{name}/golden_prefix_kv.npz")) as official_prefix:
        np.testing.assert_allclose(adapter.prefix.keys, official_prefix["k"], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(adapter.prefix.values, official_prefix["v"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("projected", [False, True])
def test_rows_are_cut_by_layer_then_key_or_value_then_head(projected: bool, tmp_path: Path) -> None:
    tensors = prefix_tensors(projected=projected)
    prefix = read(write_prefix(tmp_path, tensors, pre_seq_len=5, prefix_projection=projected))
    assert prefix.tokens == 5
    assert prefix.keys.shape == prefix.values.shape == (L, 5, H, C // H)
    assert prefix.keys.dtype == prefix.values.dtype == np.float32
    keys, values = naive(tensors)
    np.testing.assert_allclose(prefix.keys, keys, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(prefix.values, values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_size_of_the_slabs_does_not_change_it(rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read(write_prefix(tmp_path))
    monkeypatch.setattr(ptuning, "_SLAB_BYTES", rows * 8 * L * C)
    assert read(tmp_path).keys.tobytes() == whole.keys.tobytes()
    assert read(tmp_path).values.tobytes() == whole.values.tobytes()


@pytest.mark.parametrize("kind", ["f16", "bf16", "f32", "f64"])
def test_prefix_may_be_of_any_float_type(kind: str, tmp_path: Path) -> None:
    exact = prefix_tensors()[EMBEDDING]
    exact.view(np.uint32)[...] &= 0xFFFF0000  # what bfloat16 holds
    exact = exact.astype(np.float16).astype(np.float32)
    exact.view(np.uint32)[...] &= 0xFFFF0000
    halves = (exact.view(np.uint32) >> 16).astype(np.uint16)
    stored = {"bf16": halves.view(BF16), "f16": np.float16(exact), "f32": exact, "f64": np.float64(exact)}[kind]
    np.testing.assert_array_equal(read(write_prefix(tmp_path, {EMBEDDING: stored})).keys, naive({EMBEDDING: exact})[0])


def test_weights_of_the_whole_model_beside_it_are_left_out(tmp_path: Path) -> None:
    tensors = official_tensors() | prefix_tensors()
    prefix = read(write_prefix(tmp_path, tensors, pre_seq_len=5))
    assert prefix.keys.tobytes() == read(write_prefix(tmp_path / "alone")).keys.tobytes()


def test_prefix_may_be_in_shards_or_safetensors(tmp_path: Path) -> None:
    tensors, expected = prefix_tensors(projected=True), None
    names = list(tensors)
    shards = {f"pytorch_model-0000{n}-of-00002.bin": names[n - 1 :: 2] for n in (1, 2)}
    (tmp_path / "shards").mkdir()
    for file, some in shards.items():
        save_torch(tmp_path / "shards" / file, {name: tensors[name] for name in some})
    where = {name: file for file, some in shards.items() for name in some}
    save_index(tmp_path / "shards" / "pytorch_model.bin.index.json", where)
    save_safetensors(tmp_path / "model.safetensors", tensors)
    expected = read(write_prefix(tmp_path / "one", tensors)).values.tobytes()
    assert read(tmp_path / "shards").values.tobytes() == expected
    assert read(tmp_path / "model.safetensors").values.tobytes() == expected
    files = adapters.read(tmp_path / "shards", config()).files
    assert {file.name for file in files} == {*shards, "pytorch_model.bin.index.json"}


def test_projection_is_folded_without_being_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_prefix(tmp_path, prefix_tensors(projected=True))
    asked: list[int] = []
    real = memory.alloc

    def alloc(shape: tuple[int, ...], dtype: Any, why: str) -> Any:
        asked.append(int(np.prod(shape)) * np.dtype(dtype).itemsize)
        return real(shape, dtype, why)

    monkeypatch.setattr("glmcpu.convert.stored_tensor.alloc", alloc)
    read(tmp_path)
    assert max(asked) <= C * C * 4  # the keys of one layer; the whole is 2 L times that


# --- refused ---


def put(name: str, array: Any) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({f"{PREFIX}.{name}": array})


def drop(name: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.pop(f"{PREFIX}.{name}")


BAD_NUMBERS = [np.full((5, 2 * L * C), value, np.float32) for value in (np.nan, np.inf)]
PLAIN: list[tuple[Callable[[Tensors], object], tuple[str, ...]]] = [
    (put("embedding.weight", random(5, 128 + 2)), ("f32 [5, 130]", "130 keys and values", "2 x 2 x 32 = 128")),
    (put("embedding.weight", random(5, 64)), ("[5, 64]", "64 keys and values", "= 128", "trained on")),
    (put("embedding.weight", random(2, 2 * 28 * 4096)), ("28 layers of 4,096 channels", "= 128", "trained on")),
    (put("embedding.weight", random(5, 2, 64)), ("[5, 2, 64]", "a matrix")),
    (put("embedding.weight", np.ones((), np.float32)), ("[]", "a matrix")),
    (put("embedding.weight", np.zeros((5, 128), np.int8)), ("i8 [5, 128]", "floats")),
    (put("embedding.weight", BAD_NUMBERS[0]), ("embedding.weight", "NaN or infinity")),
    (put("embedding.weight", BAD_NUMBERS[1]), ("embedding.weight", "NaN or infinity")),
    (put("embedding.bias", random(5)), ("embedding.bias", "not part", "another model")),
    (put("norm.weight", random(5)), ("norm.weight", "not part")),
    (put("trans.2.weight", random(128, 32)), ("trans.0.weight", "missing", "fetch")),
]
PROJECTED: list[tuple[Callable[[Tensors], object], tuple[str, ...]]] = [
    *((drop(name), (name, "missing", "fetch")) for name in prefix_tensors(projected=True) for name in [name[27:]]),
    (put("trans.2.weight", random(64, 32)), ("f32 [64, 32]", "64 keys and values", "= 128")),
    (put("trans.2.weight", random(128, 31)), ("trans.0.weight", "[32, 32]", "[31, 32]")),
    (put("trans.0.weight", random(32, 30)), ("trans.0.weight", "[32, 30]", "[32, 32]")),
    (put("trans.0.bias", random(31)), ("trans.0.bias", "[31]", "[32]")),
    (put("trans.2.bias", random(1)), ("trans.2.bias", "[1]", "[128]")),
    (put("trans.2.bias", random(128, 1)), ("trans.2.bias", "[128, 1]", "a vector")),
    (put("trans.2.weight", np.full((128, 32), np.nan, np.float32)), ("trans.2.weight", "NaN")),
    (put("trans.0.bias", np.full(32, -np.inf, np.float32)), ("trans.0.bias", "NaN or infinity")),
    (put("trans.2.weight", np.full((128, 32), 3e38, np.float32)), ("projection", "infinity")),
]


@pytest.mark.parametrize(("change", "facts"), PLAIN)
def test_prefix_that_does_not_fit_is_refused_with_both_shapes(
    change: Callable[[Tensors], object], facts: tuple[str, ...], tmp_path: Path
) -> None:
    tensors = prefix_tensors()
    change(tensors)
    message = refused(write_prefix(tmp_path, tensors))
    assert "pytorch_model.bin: " in message
    assert all(fact in message for fact in facts), message


@pytest.mark.parametrize(("change", "facts"), PROJECTED)
def test_projection_that_is_not_whole_or_does_not_fit_is_refused(
    change: Callable[[Tensors], object], facts: tuple[str, ...], tmp_path: Path
) -> None:
    tensors = prefix_tensors(projected=True)
    change(tensors)
    message = refused(write_prefix(tmp_path, tensors))
    assert "pytorch_model.bin: " in message
    assert all(fact in message for fact in facts), message


def test_model_it_was_trained_on_is_told_from_the_config_beside_it(tmp_path: Path) -> None:
    tensors = {EMBEDDING: random(5, 2 * 3 * 64)}
    message = refused(write_prefix(tmp_path, tensors, num_layers=3, hidden_size=64))
    assert "3 layers of 64 channels" in message
    assert "2 x 2 x 32" in message


@pytest.mark.parametrize(
    ("projected", "stated", "facts"),
    [
        (False, {"pre_seq_len": 6}, ("[5, 128]", "pre_seq_len 6", "one folder")),
        (False, {"pre_seq_len": "5"}, ("pre_seq_len '5'",)),
        (False, {"pre_seq_len": True}, ("pre_seq_len True",)),
        (False, {"pre_seq_len": 5, "prefix_projection": True}, ("no projection", "prefix_projection True")),
        (True, {"pre_seq_len": 5, "prefix_projection": False}, ("a projection", "prefix_projection False")),
        (True, {"prefix_projection": 1}, ("prefix_projection 1",)),
    ],
)
def test_config_that_says_otherwise_is_refused(
    projected: bool, stated: dict[str, Any], facts: tuple[str, ...], tmp_path: Path
) -> None:
    message = refused(write_prefix(tmp_path, prefix_tensors(projected=projected), **stated))
    assert all(fact in message for fact in (*facts, "config.json", "pytorch_model.bin")), message


def test_config_that_says_nothing_is_no_obstacle(tmp_path: Path) -> None:
    assert read(write_prefix(tmp_path, pre_seq_len=None)).tokens == 5


@pytest.mark.parametrize("content", ["", "{", "[]", "<html>"])
def test_config_that_is_damaged_is_named(content: str, tmp_path: Path) -> None:
    write_prefix(tmp_path)
    (tmp_path / "config.json").write_text(content)
    assert "config.json" in refused(tmp_path)


def test_prefix_longer_than_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PREFIX_TOKENS", 5)
    assert read(write_prefix(tmp_path)).tokens == 5
    message = refused(write_prefix(tmp_path, prefix_tensors(6)))
    assert "6 tokens" in message
    assert "at most 5" in message


def test_file_that_is_cut_off_is_named(tmp_path: Path) -> None:
    file = write_prefix(tmp_path) / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:-100])
    assert "truncated" in refused(tmp_path)


def test_too_little_memory_is_the_machines_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def alloc(shape: tuple[int, ...], dtype: Any, why: str) -> Any:
        raise MachineError(f"no memory for {why}")

    monkeypatch.setattr(ptuning, "alloc", alloc)
    assert "the prefix" in refused(write_prefix(tmp_path), MachineError)
