"""convert(): from a folder to a packed file, or to one sentence and nothing else."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import golden
import numpy as np
import pytest
from tiny_checkpoint import official_tensors, write_checkpoint
from tiny_tokenizer import tiny_model

from glmcpu import packed
from glmcpu.convert import convert, hub
from glmcpu.errors import DataError, GlmcpuError, MachineError, UsageError
from glmcpu.packed import PackedFile


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder / "model.safetensors"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """tiny-mini: a folder of its own to be changed."""
    return shutil.copytree(golden.path("tiny-mini"), tmp_path / "source")


def refused(kind: type[GlmcpuError], source: Path, target: Path | None, **options: Any) -> str:
    """The message of the error: one line; nothing is left of the attempt."""
    before = golden.listing(target.parent) if target else {}
    with pytest.raises(kind) as error:
        convert(source, target, **options)
    assert "\n" not in str(error.value)
    assert (golden.listing(target.parent) if target else {}) == before
    return str(error.value)


@pytest.mark.parametrize("weights", ["f16", "int4_g32"])
@pytest.mark.parametrize("checkpoint", golden.SAME_AS_MINI)
def test_same_weights_stored_in_any_way_give_the_same_tensors(checkpoint: str, weights: str) -> None:
    ours, mini = (golden.packed(name, weights) for name in (checkpoint, "tiny-mini"))
    assert golden.tensors(ours) == golden.tensors(mini)


def test_path_of_the_file_is_returned_and_verifies(source: Path, target: Path) -> None:
    assert convert(source, target) == target
    assert packed.verify(target).contents.weights == "int4_g32"
    assert list(golden.listing(target.parent)) == [target.name]


def test_strings_are_paths_too(source: Path, target: Path) -> None:
    assert convert(str(source), str(target), weights="f16") == target


def test_default_destination_is_in_the_models_folder(
    source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GLMCPU_HOME", str(tmp_path / "not" / "yet"))
    assert convert(source) == tmp_path / "not" / "yet" / "source-int4_g32.safetensors"
    assert convert(source, weights="int8").name == "source-int8.safetensors"
    monkeypatch.chdir(source)
    assert convert(".", weights="f16").name == "source-f16.safetensors"


def test_earlier_packed_model_is_replaced(source: Path, target: Path) -> None:
    convert(source, target, weights="f16")
    convert(source, target, weights="int8")
    assert PackedFile(target).contents.weights == "int8"


def test_folder_is_no_destination(source: Path, target: Path) -> None:
    assert "folder" in refused(UsageError, source, target.parent)


@pytest.mark.parametrize("content", [b"", b"my notes", None], ids=["empty", "text", "foreign-safetensors"])
def test_file_that_is_no_packed_model_is_not_overwritten(source: Path, target: Path, content: bytes | None) -> None:
    target.write_bytes(golden.path("tiny-safetensors/model.safetensors").read_bytes() if content is None else content)
    assert target.name in refused(UsageError, source, target)


def test_weights_of_the_source_are_not_overwritten(target: Path) -> None:
    folder = shutil.copytree(golden.path("tiny-safetensors"), target.parent / "source")
    before = golden.listing(folder)
    with pytest.raises(UsageError):
        convert(folder, folder / "model.safetensors")
    assert golden.listing(folder) == before


def test_unknown_format_is_refused_with_the_nearest_name(source: Path, target: Path) -> None:
    assert "int4_g32" in refused(UsageError, source, target, weights="int4g32")


def test_revision_of_a_folder_is_refused(source: Path, target: Path) -> None:
    assert "revision" in refused(UsageError, source, target, revision="main")


@pytest.mark.parametrize("place", ["nowhere", "file"])
def test_source_that_is_no_folder_is_refused(place: str, tmp_path: Path, target: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert place in refused(DataError, tmp_path / place, target)


def test_source_folder_is_only_read(source: Path, target: Path) -> None:
    before = golden.listing(source)
    source.chmod(0o555)
    try:
        convert(source, target)
    finally:
        source.chmod(0o755)
    assert golden.listing(source) == before


def test_too_little_space_is_said_before_the_work(source: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    message = refused(MachineError, source, target, progress=lambda *_: pytest.fail("work has begun"))
    assert "no space" in message
    assert target.name in message


def test_destination_below_a_file_is_refused(source: Path, target: Path) -> None:
    target.write_bytes(b"")
    with pytest.raises(GlmcpuError, match=r"models\Wmodel\.safetensors"):
        convert(source, target / "model.safetensors")
    assert golden.listing(target.parent) == {target.name: b""}


def test_folder_we_may_not_look_into_is_the_machines_failure(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.stat

    def stat(path: Any, **options: Any) -> os.stat_result:
        if str(path) == str(secret):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, **options)

    for secret in (source, target):
        with monkeypatch.context() as patch:
            patch.setattr(os, "stat", stat)
            with pytest.raises(MachineError, match=secret.name):
                convert(source, target)


@pytest.mark.parametrize("stage", ["converting", "checking"])
@pytest.mark.parametrize("earlier", [False, True])
def test_interruption_leaves_what_was_there(source: Path, target: Path, stage: str, earlier: bool) -> None:
    if earlier:
        convert(source, target, weights="f16")
    before = golden.listing(target.parent)

    def interrupt(now: str, done: int, total: int) -> None:
        if now == stage and done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, target, weights="f32", progress=interrupt)
    assert golden.listing(target.parent) == before


def test_progress_grows_to_the_whole_in_each_stage(source: Path, target: Path) -> None:
    seen: dict[str, list[tuple[int, int]]] = {}
    convert(source, target, progress=lambda stage, done, total: seen.setdefault(stage, []).append((done, total)))
    assert list(seen) == ["converting", "checking"]
    for reports in seen.values():
        done, totals = zip(*reports, strict=True)
        assert list(done) == sorted(done)
        assert len(set(totals)) == 1
        assert done[-1] <= totals[0]
    assert seen["checking"][-1][0] == seen["checking"][-1][1]


def test_tokenizer_of_the_folder_is_packed(tmp_path: Path, target: Path) -> None:
    convert(write_checkpoint(tmp_path / "source"), target)
    assert PackedFile(target).tokenizer() == tiny_model()


def test_tokenizer_given_goes_before_that_of_the_folder(tmp_path: Path, target: Path) -> None:
    folder = write_checkpoint(tmp_path / "source")
    (folder / "ice_text.model").write_bytes(b"broken")
    other = tmp_path / "other.model"
    other.write_bytes(tiny_model())
    convert(folder, target, tokenizer=other)
    assert PackedFile(target).tokenizer() == tiny_model()


def test_without_tokenizer_the_file_has_none(source: Path, target: Path) -> None:
    convert(source, target)
    assert PackedFile(target).tokenizer() is None


def test_tokenizer_of_another_model_is_refused(source: Path, tmp_path: Path, target: Path) -> None:
    other = tmp_path / "other.model"
    other.write_bytes(tiny_model())
    assert "other.model" in refused(DataError, source, target, tokenizer=other)  # more pieces than rows


def test_tokenizer_whose_special_ids_differ_is_refused(tmp_path: Path, target: Path) -> None:
    folder = write_checkpoint(tmp_path / "source", gmask_token_id=5)
    message = refused(DataError, folder, target)
    assert "gmask" in message
    assert "ice_text.model" in message


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x0a" * 100])
def test_file_that_is_no_tokenizer_is_refused(source: Path, tmp_path: Path, target: Path, content: bytes) -> None:
    other = tmp_path / "other.model"
    other.write_bytes(content)
    assert "other.model" in refused(DataError, source, target, tokenizer=other)


def test_missing_tokenizer_file_is_refused(source: Path, tmp_path: Path, target: Path) -> None:
    assert "none.model" in refused(DataError, source, target, tokenizer=tmp_path / "none.model")


def test_real_tokenizer_goes_with_the_real_vocabulary(target: Path) -> None:
    convert(golden.path("tiny-real-vocab"), target, tokenizer=golden.official_tokenizer())
    assert PackedFile(target).tokenizer() == golden.official_tokenizer().read_bytes()


def test_real_tokenizer_does_not_go_with_a_small_vocabulary(source: Path, target: Path) -> None:
    assert "130,344" in refused(DataError, source, target, tokenizer=golden.official_tokenizer())


def test_old_vocabulary_counts_image_tokens_before_the_text(target: Path) -> None:
    convert(golden.path("tiny-old-vocab"), target, tokenizer=golden.official_tokenizer(), weights="int4_g32")
    assert PackedFile(target).contents.config["image_tokens"] == 20000


@pytest.mark.parametrize("checkpoint", ["tiny-real-vocab", "tiny-old-vocab"])
def test_vocabularies_of_two_revisions_are_not_mixed(checkpoint: str, tmp_path: Path, target: Path) -> None:
    folder = shutil.copytree(golden.path(checkpoint), tmp_path / "mixed")
    images = 20000 if checkpoint == "tiny-real-vocab" else 0
    golden.change_json(folder / "tokenizer_config.json", num_image_tokens=images)
    message = refused(DataError, folder, target)
    assert "revision" in message
    assert f"{images:,}" in message


def test_same_input_gives_the_same_bytes_whatever_the_threads(tmp_path: Path, target: Path, on_threads: Any) -> None:
    for folder in (golden.path("tiny-mini"), golden.path("tiny-int4-qe"), write_checkpoint(tmp_path / "source")):
        for weights in ("f16", "int8", "int4", "int4_g32"):

            def compute(folder: Path = folder, weights: str = weights) -> np.ndarray[Any, Any]:
                return np.frombuffer(convert(folder, target, weights=weights).read_bytes(), np.uint8)

            first = on_threads(compute)
            assert compute().tobytes() == first.tobytes()


def test_name_of_the_folder_does_not_change_the_bytes(source: Path, target: Path) -> None:
    convert(source, target)
    assert target.read_bytes() == golden.packed("tiny-mini", "int4_g32").read_bytes()


def test_source_is_recorded_with_sizes_and_digests(source: Path, target: Path) -> None:
    convert(source, target)
    recorded = PackedFile(target).contents.source["files"]
    assert set(recorded) == {p.name for p in source.iterdir() if not p.name.startswith("golden")}


def test_file_that_changes_while_it_is_read_is_the_machines_failure(source: Path, target: Path) -> None:
    def touch(stage: str, done: int, total: int) -> None:
        for shard in source.glob("*.bin"):
            os.utime(shard, ns=(1, 1))

    assert "changed" in refused(MachineError, source, target, progress=touch)


def test_infinite_weight_is_refused_by_name_and_place(tmp_path: Path, target: Path) -> None:
    tensors = official_tensors()
    tensors["transformer.layers.1.mlp.dense_4h_to_h.weight"][3, 5] = np.inf
    message = refused(DataError, write_checkpoint(tmp_path / "source", tensors=tensors), target)
    assert "transformer.layers.1.mlp.dense_4h_to_h.weight" in message
    assert "row 3, column 5" in message


def test_model_of_another_generation_is_refused(source: Path, target: Path) -> None:
    golden.change_json(source / "config.json", padded_vocab_size=65024, multi_query_attention=True)
    message = refused(DataError, source, target)
    assert "ChatGLM2" in message
    assert "config.json" in message


def test_a_model_of_the_hub_remembers_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_checkpoint(tmp_path / "snapshot")
    fetched = hub.Fetched(folder, "THUDM/chatglm-6b", "a" * 40, {"config.json": None})
    monkeypatch.setattr(hub, "fetch", lambda *_, **__: fetched)
    file = convert("THUDM/chatglm-6b", revision="main")
    assert file.name == "chatglm-6b-int4_g32.safetensors"
    assert PackedFile(file).contents.source["revision"] == "a" * 40
