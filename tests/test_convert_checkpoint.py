"""A folder as one table of tensors, whatever its layout, and what makes it unreadable."""

import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_reading import refusal
from torch_files import save_index, save_safetensors, save_torch, save_torch_legacy

from glmcpu import limits
from glmcpu.convert.checkpoint import open_checkpoint
from glmcpu.errors import GlmcpuError, MachineError

EMBEDDING = np.arange(40, dtype="f2").reshape(10, 4)
WEIGHTS = {"embedding": EMBEDDING, "norm": np.ones(4, "f4"), "head": EMBEDDING + np.float16(1)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"model_type": "chatglm", "num_layers": 2}')
    return tmp_path


def save_shards(
    folder: Path, save: Callable[[Path, dict[str, Any]], None] = save_torch, stem: str = "pytorch_model"
) -> None:
    suffix = "bin" if stem == "pytorch_model" else "safetensors"
    names = [f"{stem}-{k:05d}-of-00003.{suffix}" for k in (1, 2, 3)]
    for name, (tensor, value) in zip(names, WEIGHTS.items(), strict=True):
        save(folder / name, {tensor: value})
    save_index(folder / f"{stem}.{suffix}.index.json", dict(zip(WEIGHTS, names, strict=True)))


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "torch shards": save_shards,
    "one torch file": lambda folder: save_torch(folder / "pytorch_model.bin", WEIGHTS),
    "one legacy file": lambda folder: save_torch_legacy(folder / "pytorch_model.bin", WEIGHTS),
    "one safetensors file": lambda folder: save_safetensors(folder / "model.safetensors", WEIGHTS),
    "safetensors shards": lambda folder: save_shards(folder, save_safetensors, "model"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_tensors(layout: str, folder: Path) -> None:
    LAYOUTS[layout](folder)
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.config == {"model_type": "chatglm", "num_layers": 2}
        assert checkpoint.tokenizer_config is None
        assert checkpoint.tokenizer is None
        assert checkpoint.notes == ()
        assert list(checkpoint.files) == sorted(folder.iterdir())
        assert checkpoint.tensors.keys() == WEIGHTS.keys()
        for name, expected in WEIGHTS.items():
            info = checkpoint.tensors[name]
            assert (info.name, info.shape) == (name, expected.shape)
            assert info.dtype == {"f2": "f16", "f4": "f32"}[expected.dtype.str[1:]]
            np.testing.assert_array_equal(checkpoint.read(name), expected.astype("f4"), strict=True)
            found = np.concatenate([slab.copy() for slab in checkpoint.slabs(name, 3)])
            np.testing.assert_array_equal(found, expected.astype("f4"), strict=True)


def test_tied_tensors_have_one_storage_and_parts_of_one_have_not(folder: Path) -> None:
    weights = {
        "a": EMBEDDING,
        "tied": EMBEDDING,
        "part": EMBEDDING[:5],
        "other": EMBEDDING.copy(),
        "turned": EMBEDDING.T,
    }
    save_torch(folder / "pytorch_model.bin", weights)
    with open_checkpoint(folder) as checkpoint:
        storages = {name: info.storage for name, info in checkpoint.tensors.items()}
    assert storages.pop("tied") == storages["a"]
    assert len(set(storages.values())) == 4


def test_tokenizer_files_are_found(folder: Path) -> None:
    save_torch(folder / "pytorch_model.bin", WEIGHTS)
    (folder / "tokenizer_config.json").write_text('{"num_image_tokens": 0}')
    (folder / "ice_text.model").write_bytes(b"model")
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.tokenizer_config == {"num_image_tokens": 0}
        assert checkpoint.tokenizer == folder / "ice_text.model"
        assert [path.name for path in checkpoint.files] == ["config.json", "pytorch_model.bin", "tokenizer_config.json"]


def test_safetensors_are_preferred_with_a_note(folder: Path) -> None:
    save_torch(folder / "pytorch_model.bin", {"a": EMBEDDING})
    save_safetensors(folder / "model.safetensors", {"b": EMBEDDING})
    with open_checkpoint(folder) as checkpoint:
        assert list(checkpoint.tensors) == ["b"]
        assert checkpoint.notes == ("model.safetensors is used and pytorch_model.bin beside it is not",)


def test_missing_folder_file_as_folder_missing_config_and_missing_weights_each_have_a_sentence(tmp_path: Path) -> None:
    assert "no such folder" in refusal(tmp_path / "none")
    with pytest.raises(MachineError, match=r"cannot be read: .*embedded null"):
        open_checkpoint(Path("a\0b"))
    (tmp_path / "file").write_text("")
    assert "is a file; give the folder" in refusal(tmp_path / "file")
    assert "config.json is missing" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert "no weights; expected pytorch_model*.bin or model*.safetensors" in refusal(tmp_path)


def test_missing_shard_is_named_in_the_error(folder: Path) -> None:
    save_shards(folder)
    (folder / "pytorch_model-00002-of-00003.bin").unlink()
    assert "pytorch_model-00002-of-00003.bin: shard 2 of 3 is missing (2 are here)" in refusal(folder)


@pytest.mark.parametrize(
    "name",
    [
        "../m.bin",
        "/etc/passwd",
        "..",
        "a/b.bin",
        "a\\b.bin",
        "C:m.bin",
        ".hidden",
        "",
        "a\0b",
        "a\x1b[2J",
        "a" * 256,
        7,
        None,
    ],
)
def test_index_that_leaves_the_folder_is_refused_before_anything_is_opened(
    name: object, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_shards(folder)
    index = {"weight_map": {"embedding": "pytorch_model-00001-of-00003.bin", "evil": name}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    monkeypatch.setattr("glmcpu.convert.checkpoint.WeightFile", lambda path: pytest.fail(f"opened {path}"))
    assert "as a weight file" in refusal(folder)


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        (b"{}", "has no weight_map"),
        (b'{"weight_map": {}}', "has no weight_map"),
        (b'{"weight_map": []}', "has no weight_map"),
        (b"[]", "holds a JSON list"),
        (b'{"weight_map": {"a": "m.bin", "a": "n.bin"}}', "duplicate key 'a'"),
        (b'{"weight_map": {"a": "m.bin"}, "metadata": NaN}', "holds NaN"),
        (b'{"weight_map": ' + b"[" * 100_000, "nested deeper"),
        (b'\xef\xbb\xbf{"weight_map": {"a": "m.bin"}}', "JSON"),
        (b"\xff{}", "not UTF-8"),
        (json.dumps({"weight_map": {str(n): "m.bin" for n in range(4097)}}).encode(), "4,097 tensors"),
        (json.dumps({"weight_map": {str(n): f"{n}.bin" for n in range(201)}}).encode(), "more than 200 weight files"),
        (b" " * (limits.INDEX_BYTES + 1), "at most 8,388,608 are accepted"),
        (b"<html>", "looks like an HTML page"),
    ],
)
def test_doubtful_index_is_refused(text: bytes, fragment: str, folder: Path) -> None:
    (folder / "pytorch_model.bin.index.json").write_bytes(text)
    message = refusal(folder)
    assert "pytorch_model.bin.index.json: " in message
    assert fragment in message


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        (b"", "not valid JSON"),
        (b"[]", "JSON"),
        (b"null", "holds a JSON NoneType"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"<!doctype html>", "looks like an HTML page"),
        (b'{"num_layers": 1, "num_layers": 2}', "duplicate key"),
        (b" " * (limits.CONFIG_BYTES + 1), "at most 1,048,576 are accepted"),
    ],
)
def test_doubtful_config_is_refused(text: bytes, fragment: str, folder: Path) -> None:
    save_torch(folder / "pytorch_model.bin", WEIGHTS)
    for name in ("config.json", "tokenizer_config.json"):
        (folder / "config.json").write_text("{}")
        (folder / name).write_bytes(text)
        message = refusal(folder)
        assert f"{name}: " in message
        assert fragment in message


def test_tensor_promised_but_absent_is_not_listed_and_the_index_is_blamed(folder: Path) -> None:
    save_shards(folder)
    index = json.loads((folder / "pytorch_model.bin.index.json").read_text())
    index["weight_map"]["ghost"] = "pytorch_model-00003-of-00003.bin"
    del index["weight_map"]["norm"]
    index["weight_map"]["other"] = "pytorch_model-00002-of-00003.bin"
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with open_checkpoint(folder) as checkpoint:
        assert "ghost" not in checkpoint.tensors
        assert "norm" in checkpoint.tensors
        assert "promises it in pytorch_model-00003-of-00003.bin" in checkpoint.missing("ghost")
        assert checkpoint.missing("unheard of") == "no weight file of the folder holds it"


def test_tensor_in_two_shards_is_refused(folder: Path) -> None:
    save_shards(folder)
    save_torch(folder / "pytorch_model-00003-of-00003.bin", {"head": EMBEDDING, "embedding": EMBEDDING})
    assert "tensor 'embedding' is also in pytorch_model-00001-of-00003.bin" in refusal(folder)


def test_more_tensors_than_any_model_has_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_shards(folder)
    monkeypatch.setattr(limits, "TENSORS", 3)
    open_checkpoint(folder).__exit__()
    save_torch(folder / "pytorch_model-00003-of-00003.bin", {"head": EMBEDDING, "more": EMBEDDING})
    assert "4 tensors, and at most 3 are accepted" in refusal(folder)


def test_file_that_changes_while_it_is_read_is_an_error_of_the_machine(folder: Path) -> None:
    save_torch(folder / "pytorch_model.bin", WEIGHTS)
    with open_checkpoint(folder) as checkpoint:
        os.utime(folder / "pytorch_model.bin", ns=(1, 1))
        with pytest.raises(MachineError, match=r"pytorch_model\.bin: changed while reading"):
            checkpoint.read("norm")


def test_files_are_closed_at_the_end_and_when_opening_fails(folder: Path) -> None:
    save_shards(folder)
    with open_checkpoint(folder) as checkpoint:
        file = checkpoint._stored["norm"].storage.file.file
        assert not file.closed
    assert file.closed
    (folder / "pytorch_model-00003-of-00003.bin").write_bytes(b"")
    refusal(folder)  # an open file would be a ResourceWarning, and warnings are errors


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")
@pytest.mark.parametrize("kind", ["fifo", "socket", "folder", "device", "loop"])
def test_what_is_no_file_is_refused_at_once(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)  # a socket's path may not be long
    save_shards(folder)
    path = folder / "pytorch_model-00002-of-00003.bin"
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.symlink_to(path)
    assert "pytorch_model-00002-of-00003.bin: " in refusal(folder, GlmcpuError)


def test_symlinked_shards_are_read_as_in_the_hub_cache(folder: Path) -> None:
    (folder / "blobs").mkdir()
    save_torch(folder / "blobs" / "abc", WEIGHTS)
    try:
        (folder / "pytorch_model.bin").symlink_to(folder / "blobs" / "abc")
    except OSError:
        pytest.skip("no right to make symlinks")
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.tensors.keys() == WEIGHTS.keys()


def test_unusual_folder_names_work(tmp_path: Path) -> None:
    folder = tmp_path / "模型 100%{}\u202e"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_torch(folder / "pytorch_model.bin", WEIGHTS)
    with open_checkpoint(folder) as checkpoint:
        checkpoint.read("norm")
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert "is empty" in refusal(folder)
