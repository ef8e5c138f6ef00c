"""read(): what an adapter is, its files say; and what is none gets one sentence and the way out."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import golden
import numpy as np
import pytest
from tiny_adapter import config, lora_tensors, module, prefix_tensors, write_lora, write_prefix
from tiny_checkpoint import Tensors, official_tensors, write_checkpoint
from torch_files import save_safetensors, save_torch

from glmcpu import adapters
from glmcpu.convert import convert
from glmcpu.errors import DataError, GlmcpuError, UsageError


def refused(path: Path, kind: type[GlmcpuError] = DataError, **options: Any) -> str:
    with pytest.raises(kind) as error:
        adapters.read(path, config(), **options)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 300
    return str(error.value)


def kind_of(path: Path) -> str:
    return adapters.read(path, config()).about.split(":")[0]


def test_kind_is_told_by_the_tensors_whatever_the_names(tmp_path: Path) -> None:
    for name, tensors, kind in (
        ("lora.bin", prefix_tensors(), "prefix"),
        ("ptuning.bin", lora_tensors(), "LoRA"),
        ("prefix.safetensors", lora_tensors(), "LoRA"),
        ("adapter_model.safetensors", prefix_tensors(), "prefix"),
        ("pytorch_model.bin", lora_tensors(), "LoRA"),
    ):
        folder = tmp_path / f"ptuning-lora-{name}"
        folder.mkdir()
        save: Any = save_safetensors if name.endswith("safetensors") else save_torch
        save(folder / name, tensors)
        assert kind_of(folder / name) == kind
        if name in ("adapter_model.safetensors", "pytorch_model.bin"):
            assert kind_of(folder) == kind


def test_strings_and_files_are_paths_too(tmp_path: Path) -> None:
    folder = write_lora(tmp_path, lora_alpha=8)
    given = (folder, str(folder), folder / "adapter_model.bin", os.fspath(folder / "adapter_model.bin"))
    found = [adapters.read(path, config()) for path in given]
    assert len({adapter.low_rank["layers.0.qkv"].up.tobytes() for adapter in found}) == 1
    assert found[1].path == folder
    assert {path.name for path in found[3].files} == {"adapter_config.json", "adapter_model.bin"}


def test_file_of_its_own_name_takes_the_description_beside_it(tmp_path: Path) -> None:
    folder = write_lora(tmp_path, lora_alpha=8)
    (folder / "adapter_model.bin").rename(folder / "mine.pt")
    up = adapters.read(folder / "mine.pt", config()).low_rank["layers.0.qkv"].up
    np.testing.assert_array_equal(up, 2 * lora_tensors(start="")[f"{module(0)}.lora_B.weight"])


def test_home_folder_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    write_lora(tmp_path / "mine")
    assert adapters.read("~/mine", config()).low_rank


@pytest.mark.parametrize(
    ("used", "beside"),
    [
        ("adapter_model.safetensors", "adapter_model.bin"),
        ("adapter_model.bin", "pytorch_model.bin"),
        ("model.safetensors", "pytorch_model.bin"),
    ],
)
def test_file_that_is_not_used_is_said(used: str, beside: str, tmp_path: Path) -> None:
    write_lora(tmp_path, file=used)
    (tmp_path / beside).write_bytes(b"whatever")
    assert adapters.read(tmp_path, config()).notes == (f"{used} is used and {beside} beside it is not",)


def test_prefix_takes_places_and_lora_none(tmp_path: Path) -> None:
    assert adapters.read(write_prefix(tmp_path / "prefix"), config()).prefix_tokens == 5
    assert adapters.read(write_lora(tmp_path / "lora"), config()).prefix_tokens == 0


def test_one_token_is_no_plural(tmp_path: Path) -> None:
    assert adapters.read(write_prefix(tmp_path, prefix_tensors(1)), config()).about == "prefix: 1 token"


# --- refused ---


def test_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    message = refused(tmp_path / "mymusise" / "chatglm-6b-alpaca-lora")
    assert "no such file or folder" in message
    assert "fetched" in message


def test_empty_path_is_a_wrong_request_and_not_the_folder_one_is_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write_lora(tmp_path))
    with pytest.raises(UsageError, match="empty"):
        adapters.read("", config())
    assert adapters.read(".", config()).low_rank


def test_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    message = refused(tmp_path)
    assert "adapter_model.safetensors" in message
    assert "pytorch_model.bin" in message


def test_folder_of_a_training_names_its_last_step(tmp_path: Path) -> None:
    for name in ("checkpoint-500", "checkpoint-3000", "checkpoint-best"):
        (tmp_path / name).mkdir()
    message = refused(tmp_path)
    assert "2 folders" in message
    assert "checkpoint-3000" in message


def test_description_without_weights_asks_for_them(tmp_path: Path) -> None:
    (write_lora(tmp_path) / "adapter_model.bin").unlink()
    assert "adapter_model.bin or .safetensors" in refused(tmp_path)
    assert "give the folder" in refused(tmp_path / "adapter_config.json")


@pytest.mark.parametrize("save", [save_torch, save_safetensors])
def test_file_without_tensors_is_refused(save: Any, tmp_path: Path) -> None:
    """What training leaves that has replaced model.state_dict: a file of 443 bytes."""
    name = "adapter_model.bin" if save is save_torch else "adapter_model.safetensors"
    save(tmp_path / name, {})
    assert "no tensors" in refused(tmp_path)


@pytest.mark.parametrize(
    ("tensors", "facts"),
    [
        (official_tensors(), ("whole model", "glmcpu convert")),
        ({name: array for name, array in official_tensors().items() if "layers.1.mlp" in name}, ("4 weights in full",)),
        ({"prompt_embeddings": np.zeros((8, 4), np.float32)}, ("'prompt_embeddings'", "lora_A")),
        ({"embedding.codes": np.zeros((8, 4), np.int8)}, ("'embedding.codes'",)),
        ({"prefix_encoder.embedding.weight": np.zeros((8, 4), np.float32)}, ("transformer.prefix_encoder.",)),
        (lora_tensors() | prefix_tensors(), ("a prefix and LoRA", "folder of its own")),
    ],
    ids=["full", "freeze", "prompt", "packed", "names", "both"],
)
def test_file_of_something_else_is_refused_with_the_way_out(
    tensors: Tensors, facts: tuple[str, ...], tmp_path: Path
) -> None:
    save_torch(tmp_path / "pytorch_model.bin", tensors)
    message = refused(tmp_path)
    assert all(fact in message for fact in (*facts, "pytorch_model.bin")), message


def test_checkpoint_and_packed_model_are_no_adapters(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint")
    assert "whole model" in refused(folder)
    packed = convert(folder, tmp_path / "packed.safetensors", weights="f16")
    assert "packed.safetensors" in refused(packed)


@pytest.mark.parametrize("kind", ["PREFIX_TUNING", "PROMPT_TUNING"])
def test_other_adapters_of_peft_are_refused_by_kind(kind: str, tmp_path: Path) -> None:
    message = refused(write_lora(tmp_path, {"prompt_embeddings": np.zeros((8, 4), np.float32)}, peft_type=kind))
    assert kind in message
    assert "P-Tuning v2" in message


def test_description_without_alpha_is_not_what_is_wrong_with_no_adapter(tmp_path: Path) -> None:
    assert "no tensor of" in refused(write_lora(tmp_path, {"x": np.zeros(3, np.float32)}, lora_alpha=None))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\nsize 14700000\n", "LFS pointer"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"\x80\x02}q\x00.", "pickle"),
        (b"PK\x03\x04", "truncated"),
    ],
)
@pytest.mark.parametrize("name", ["adapter_model.bin", "pytorch_model.bin"])
def test_damaged_file_gets_the_sentence_of_a_checkpoints(name: str, content: bytes, what: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    message = refused(tmp_path)
    assert what in message
    assert name in message


def test_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    shutil.copytree(golden.path("tiny-ptuning/base"), tmp_path / "base")
    (tmp_path / "base" / "pytorch_model-00002-of-00004.bin").unlink()
    assert "shard 2 of 4" in refused(tmp_path / "base")


@pytest.mark.parametrize("alpha", [0, -1, float("nan"), float("inf"), 1e9, True, "32"])
def test_alpha_that_is_out_of_range_is_a_wrong_request(alpha: Any, tmp_path: Path) -> None:
    assert "--lora-alpha" in refused(write_lora(tmp_path), UsageError, lora_alpha=alpha)


def test_alpha_for_a_prefix_is_a_wrong_request(tmp_path: Path) -> None:
    message = refused(write_prefix(tmp_path), UsageError, lora_alpha=8)
    assert "--lora-alpha 8" in message
    assert "prefix" in message


def test_prefix_cannot_be_merged_and_is_not_even_read(tmp_path: Path) -> None:
    folder = write_prefix(tmp_path, {"transformer.prefix_encoder.embedding.weight": np.zeros((1, 1), np.float32)})
    with pytest.raises(UsageError, match="glmcpu chat MODEL --adapter"):
        adapters.read_mergeable(folder, config())
    assert adapters.read_mergeable(write_lora(tmp_path / "lora"), config()).low_rank


def test_folder_is_only_read(tmp_path: Path) -> None:
    for folder in (write_lora(tmp_path / "lora"), write_prefix(tmp_path / "prefix", pre_seq_len=5)):
        before = golden.listing(folder)
        adapters.read(folder, config())
        assert golden.listing(folder) == before


def test_importing_adapters_imports_neither_torch_nor_the_converter(tmp_path: Path) -> None:
    code = "import glmcpu.adapters.lora, sys; print([m for m in ('torch', 'glmcpu.convert') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
