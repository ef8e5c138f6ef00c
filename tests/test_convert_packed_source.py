"""A model packed exactly gives what its checkpoint gives, and any other file one sentence."""

import shutil
from pathlib import Path
from typing import Any

import golden
import numpy as np
import pytest
from tiny_checkpoint import write_checkpoint
from tiny_tokenizer import tiny_model

from glmcpu import cli, formats, packed
from glmcpu.convert import convert, writer
from glmcpu.errors import DataError, MachineError, UsageError
from glmcpu.packed import PackedFile


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "source")


@pytest.fixture
def exact(checkpoint: Path, tmp_path: Path) -> Path:
    """The checkpoint's half precision, packed."""
    return convert(checkpoint, tmp_path / "tiny-f16.safetensors", weights="f16")


@pytest.mark.parametrize("weights", formats.names())
@pytest.mark.parametrize("kept", ["f16", "f32"])
def test_packed_model_gives_the_tensors_its_checkpoint_gives(
    kept: str, weights: str, checkpoint: Path, tmp_path: Path
) -> None:
    exact = convert(checkpoint, tmp_path / "exact.safetensors", weights=kept)
    direct = convert(checkpoint, tmp_path / "direct.safetensors", weights=weights)
    smaller = convert(exact, tmp_path / "smaller.safetensors", weights=weights)
    assert golden.tensors(smaller) == golden.tensors(direct)
    assert packed.verify(smaller).contents.config == PackedFile(direct).contents.config


@pytest.mark.parametrize("rows", [1, 16, 48])
def test_size_of_the_slabs_does_not_change_a_byte(
    rows: int, exact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = convert(exact, tmp_path / "whole.safetensors", weights="int4_g32").read_bytes()
    monkeypatch.setattr(writer, "_SLAB_BYTES", rows * 4 * 32)
    assert convert(exact, tmp_path / "slabs.safetensors", weights="int4_g32").read_bytes() == whole


def test_untied_lm_head_is_kept(tmp_path: Path) -> None:
    untied = golden.untied_model("cpu").path
    smaller = convert(untied, tmp_path / "smaller.safetensors", weights="f16")
    assert "lm_head.values" in PackedFile(smaller).tensors()


def test_where_it_came_from_is_recorded(exact: Path, tmp_path: Path) -> None:
    source = PackedFile(convert(exact, tmp_path / "small.safetensors")).contents.source
    assert set(source["files"]) == {"tiny-f16.safetensors"}
    assert source["made_of"] == PackedFile(exact).contents.source["files"]


def test_its_tokenizer_goes_along_and_a_given_one_goes_before_it(exact: Path, tmp_path: Path) -> None:
    assert PackedFile(convert(exact, tmp_path / "small.safetensors")).tokenizer() == tiny_model()
    broken = tmp_path / "broken.model"
    broken.write_bytes(b"broken")
    with pytest.raises(DataError, match=r"broken\.model"):
        convert(exact, tmp_path / "small.safetensors", tokenizer=broken)


def test_name_without_its_format_names_the_result(exact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLMCPU_HOME", str(tmp_path / "models"))
    assert convert(exact) == tmp_path / "models" / "tiny-int4_g32.safetensors"
    plain = shutil.copy(exact, tmp_path / "models" / "plain.safetensors")
    assert convert(Path(plain).name, weights="int8") == tmp_path / "models" / "plain-int8.safetensors"


def test_model_is_found_by_its_name_and_a_folder_of_that_name_goes_before_it(
    checkpoint: Path, exact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLMCPU_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert convert("tiny-f16", weights="int8") == tmp_path / "tiny-int8.safetensors"
    shutil.copytree(checkpoint, tmp_path / "tiny-f16")
    assert convert("tiny-f16", weights="int8") == tmp_path / "tiny-f16-int8.safetensors"


def refused(kind: type[Exception], source: Path, target: Path, **options: Any) -> str:
    before = golden.listing(target.parent)
    with pytest.raises(kind) as error:
        convert(source, target, **options)
    assert "\n" not in str(error.value)
    assert golden.listing(target.parent) == before
    return str(error.value)


def test_rounded_model_is_refused_with_what_to_give_instead(exact: Path, tmp_path: Path) -> None:
    small = convert(exact, tmp_path / "small.safetensors", weights="int8")
    message = refused(DataError, small, tmp_path / "smaller.safetensors")
    assert "int8" in message
    assert "--weights f16" in message


def test_model_is_not_written_over_itself(exact: Path) -> None:
    assert exact.name in refused(UsageError, exact, exact, weights="int8")


def test_revision_is_for_the_hub(exact: Path, tmp_path: Path) -> None:
    assert "--revision" in refused(UsageError, exact, tmp_path / "small.safetensors", revision="main")


@pytest.mark.parametrize("content", [b"", b"my notes", None], ids=["empty", "text", "foreign"])
def test_file_that_is_no_packed_model_is_refused_by_name(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "file.safetensors"
    file.write_bytes(golden.path("tiny-safetensors/model.safetensors").read_bytes() if content is None else content)
    message = refused(DataError, file, tmp_path / "small.safetensors")
    assert file.name in message
    assert ("folder of a checkpoint" in message) == (content is None)


def test_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "none.safetensors" in refused(DataError, tmp_path / "none.safetensors", tmp_path / "small.safetensors")


@pytest.mark.parametrize("tensor", ["layers.1.mlp_down.values", "embedding.values", "layers.0.qkv.bias"])
def test_damaged_tensor_is_found_before_the_result_has_its_name(tensor: str, exact: Path, tmp_path: Path) -> None:
    file = PackedFile(exact)
    entry, data = file.tensors()[tensor], bytearray(exact.read_bytes())
    begin = len(data) - max(e.end for e in file.tensors().values()) + entry.begin
    data[begin] ^= 1
    exact.write_bytes(data)
    assert "checksum" in refused(DataError, exact, tmp_path / "small.safetensors")


def test_file_that_changes_while_it_is_read_is_the_machines_failure(exact: Path, tmp_path: Path) -> None:
    def touch(stage: str, done: int, total: int) -> None:
        exact.write_bytes(exact.read_bytes())

    assert "changed" in refused(MachineError, exact, tmp_path / "small.safetensors", progress=touch)


def test_commands_take_it_too(exact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = tmp_path / "small.safetensors"
    assert cli.main(["convert", str(exact), str(small), "--weights", "int4_g32"]) == 0
    assert cli.main(["convert", str(small), str(tmp_path / "x.safetensors")]) == 3
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_slabs_are_rows_of_the_weights(exact: Path) -> None:
    from glmcpu.convert.packed_source import open_packed

    with open_packed(exact) as origin:
        weight = PackedFile(exact).weight("embedding", origin.sources["embedding"].O, 32)
        slabs = [slab.copy() for slab in origin.tensors.slabs("embedding", 16)]
        np.testing.assert_array_equal(np.concatenate(slabs), formats.unpack(weight))
