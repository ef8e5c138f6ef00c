"""The packed file: what it promises to readers, and that damage anywhere is found."""

import dataclasses
import json
import mmap
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import golden
import numpy as np
import pytest
import safetensors.numpy
from torch_files import safetensors_bytes

from glmcpu import formats, packed
from glmcpu.errors import DataError, MachineError
from glmcpu.models import chatglm
from glmcpu.packed import Contents, PackedFile
from glmcpu.safetensors_header import Entry


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """tiny-mini, packed: a file of its own to be damaged."""
    target = tmp_path / "model.safetensors"
    shutil.copyfile(golden.packed("tiny-mini", "int4_g32"), target)
    return target


def refused(path: Path, open_it: Callable[[Path], Any] = PackedFile) -> str:
    """The message of the DataError: one line that names the file."""
    with pytest.raises(DataError) as error:
        open_it(path)
    message = str(error.value)
    assert "\n" not in message
    assert path.name in message
    return message


def rewrite(path: Path, contents: Contents) -> None:
    """The same tensors with other metadata, digest and all."""
    old = PackedFile(path)
    path.write_bytes(packed.header_bytes(contents, old.tensors()) + data_of(old))


def data_of(file: PackedFile) -> bytes:
    return b"".join(file.raw(name).tobytes() for name in file.tensors())


def header_json(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    table: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return table


@pytest.mark.parametrize("weights", formats.names())
def test_safetensors_library_reads_the_same_arrays(weights: str) -> None:
    path = golden.packed("tiny-mini", weights)
    ours, theirs = PackedFile(path), safetensors.numpy.load_file(path)
    assert theirs.keys() == ours.tensors().keys()
    for name, entry in ours.tensors().items():
        array = ours.array(name, entry.shape, packed.DTYPES[entry.dtype])
        np.testing.assert_array_equal(array, theirs[name], strict=True)


@pytest.mark.parametrize("weights", formats.names())
def test_arrays_are_aligned_read_only_views_of_the_mapped_file(weights: str) -> None:
    file = PackedFile(golden.packed("tiny-mini", weights))
    for name, entry in file.tensors().items():
        array = file.array(name, entry.shape, packed.DTYPES[entry.dtype])
        assert not array.flags.writeable
        assert not array.flags.owndata
        assert array.flags.aligned
        assert array.flags.c_contiguous
        assert np.shares_memory(array, file.raw(name))
        if array.nbytes % packed.ALIGNMENT == 0:
            assert array.ctypes.data % packed.ALIGNMENT == 0
        with pytest.raises(ValueError, match="read-only"):
            array.flat[0] = 0


def test_weight_has_the_arrays_of_its_format_and_zeros_where_there_is_no_bias() -> None:
    file = PackedFile(golden.packed("tiny-mini", "int8"))
    embedding, qkv = file.weight("embedding", 320, 32), file.weight("layers.0.qkv", 96, 32)
    assert np.shares_memory(qkv.arrays["codes"], file.raw("layers.0.qkv.codes"))
    assert not embedding.bias.any()
    assert qkv.bias.any()
    assert not embedding.bias.flags.writeable
    assert (qkv.format, qkv.O, qkv.I) == ("int8", 96, 32)


def test_metadata_says_what_the_file_holds() -> None:
    contents = PackedFile(golden.packed("tiny-mini", "int4_g32")).contents
    assert contents.generation == "chatglm"
    assert contents.weights == "int4_g32"
    assert contents.config["gmask"] == 301
    assert set(contents.formats.values()) == {"int4_g32"}
    assert contents.source["name"] == "THUDM/chatglm-6b"
    source = golden.path("tiny-mini")
    for name, facts in contents.source["files"].items():
        assert facts["size"] == (source / name).stat().st_size
        assert len(facts["sha256"]) == 64


def positions(begin: int, end: int, n: int) -> Iterator[tuple[int, int]]:
    """n (byte, bit) places, the same at every run."""
    choose = random.Random(f"{begin} {end}")
    for _ in range(n):
        yield choose.randrange(begin, end), choose.randrange(8)


def flip(data: bytearray, place: int, bit: int) -> None:
    data[place] ^= 1 << bit


def test_every_flipped_bit_of_the_header_is_refused_at_opening(file: Path) -> None:
    data = bytearray(file.read_bytes())
    header_bytes = 8 + int.from_bytes(data[:8], "little")
    assert data[header_bytes - 1] in b" }"
    edges = [(place, bit) for place in (*range(8), header_bytes - 1) for bit in range(8)]
    for place, bit in [*edges, *positions(8, header_bytes, 300)]:
        flip(data, place, bit)
        file.write_bytes(data)
        refused(file)
        flip(data, place, bit)


def test_every_flipped_bit_of_a_tensor_is_found_by_verify_and_named(file: Path) -> None:
    data = bytearray(file.read_bytes())
    tensors = PackedFile(file).tensors()
    header_bytes = 8 + int.from_bytes(data[:8], "little")
    ends = [(header_bytes, 0), (len(data) - 1, 7)]
    for place, bit in [*ends, *positions(header_bytes, len(data), 300)]:
        flip(data, place, bit)
        file.write_bytes(data)
        name = next(name for name, entry in tensors.items() if place - header_bytes < entry.end)
        assert f"'{name}'" in refused(file, packed.verify)
        flip(data, place, bit)
    file.write_bytes(data)
    packed.verify(file)


def test_verify_reports_bytes_that_grow_to_the_size_of_the_file(file: Path) -> None:
    seen: list[tuple[int, int]] = []
    packed.verify(file, lambda done, total: seen.append((done, total)))
    done = [n for n, _ in seen]
    assert done == sorted(done)
    assert seen[-1] == (file.stat().st_size, file.stat().st_size)


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 9, 500, -1, -64, -10_000])
def test_truncated_file_is_refused(file: Path, cut: int) -> None:
    file.write_bytes(file.read_bytes()[:cut])
    refused(file)


def test_extra_bytes_are_refused(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")
    assert "extra" in refused(file)


def test_file_that_is_missing_or_a_folder_is_refused(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "none.safetensors")
    refused(tmp_path)


def test_safetensors_file_of_another_program_is_refused_with_advice() -> None:
    message = refused(golden.path("tiny-safetensors/model.safetensors"))
    assert "glmcpu convert" in message


def change_metadata(path: Path, key: str, value: str | None) -> None:
    """Sets or removes one text of the header; digest as it was."""
    table = header_json(path)
    data = path.read_bytes()[8 + int.from_bytes(path.read_bytes()[:8], "little") :]
    table["__metadata__"].pop(key)
    if value is not None:
        table["__metadata__"][key] = value
    path.write_bytes(safetensors_bytes(table, data))


def test_file_of_a_newer_version_is_refused_by_its_number(file: Path) -> None:
    change_metadata(file, "format_version", "2")
    message = refused(file)
    assert "format 2" in message
    assert "upgrade" in message


@pytest.mark.parametrize("key", ["checksums", "config", "digest", "formats", "generation", "source", "weights"])
def test_missing_metadata_is_named(file: Path, key: str) -> None:
    change_metadata(file, key, None)
    assert key in refused(file)


@pytest.mark.parametrize("key", ["config", "formats", "source", "checksums"])
@pytest.mark.parametrize("value", ["[]", "null", "{", '{"a": {"a": {}}, "a": 1}', '{"a": NaN}'])
def test_metadata_that_is_no_object_is_refused(file: Path, key: str, value: str) -> None:
    change: dict[str, Any] = {key: value}
    rewrite(file, dataclasses.replace(PackedFile(file).contents, **change))
    assert key in refused(file)


@pytest.mark.parametrize("key", ["formats", "checksums"])
@pytest.mark.parametrize("value", [1, None, ["f16"], {"f16": 1}])
def test_tables_that_do_not_map_to_texts_are_refused(file: Path, key: str, value: object) -> None:
    contents = PackedFile(file).contents
    table = dict.fromkeys(getattr(contents, key), value)
    change: dict[str, Any] = {key: table}
    rewrite(file, dataclasses.replace(contents, **change))
    assert key in refused(file)


def open_embedding(path: Path) -> None:
    PackedFile(path).weight("embedding", 320, 32)


@pytest.mark.parametrize(
    ("kind", "fact"), [("int3", "int3"), ("f16", "embedding.values"), ("int4", "embedding.scales"), (None, "embedding")]
)
def test_matrix_in_another_format_than_stated_is_refused(file: Path, kind: str | None, fact: str) -> None:
    contents = PackedFile(file).contents
    others = {name: old for name, old in contents.formats.items() if name != "embedding"}
    rewrite(file, dataclasses.replace(contents, formats=others | ({"embedding": kind} if kind else {})))
    assert fact in refused(file, open_embedding)


def test_tensor_of_another_shape_or_type_is_named_with_both(file: Path) -> None:
    opened = PackedFile(file)
    for shape, dtype, facts in (
        ((33,), np.float32, ("F32 [32]", "F32 [33]")),
        ((32,), np.float16, ("F32 [32]", "F16 [32]")),
    ):
        with pytest.raises(DataError, match=r"tensor 'final_norm\.scale'") as error:
            opened.array("final_norm.scale", shape, dtype)
        assert all(fact in str(error.value) for fact in facts)
    with pytest.raises(DataError, match="'nobody' is missing"):
        opened.vector("nobody", 3)


def test_tensor_without_a_checksum_is_refused(file: Path) -> None:
    contents = PackedFile(file).contents
    checksums = {name: crc for name, crc in contents.checksums.items() if name != "embedding.codes"}
    rewrite(file, dataclasses.replace(contents, checksums=checksums))
    assert "'embedding.codes'" in refused(file)


def test_tensor_of_a_type_no_format_has_is_refused(file: Path) -> None:
    old = PackedFile(file)
    entry = dataclasses.replace(old.tensors()["embedding.codes"], dtype="F8_E5M2")
    table = {**old.tensors(), "embedding.codes": entry}
    file.write_bytes(packed.header_bytes(old.contents, table) + data_of(old))
    assert "F8_E5M2" in refused(file)


def test_unaligned_tensor_is_refused(file: Path) -> None:
    old = PackedFile(file)
    table = {"odd": Entry("U8", (1,), 0, 1)}
    for name, entry in old.tensors().items():
        table[name] = dataclasses.replace(entry, begin=entry.begin + 1, end=entry.end + 1)
    contents = dataclasses.replace(old.contents, checksums={**old.contents.checksums, "odd": "00000000"})
    file.write_bytes(packed.header_bytes(contents, table) + b"\0" + data_of(old))
    assert "not aligned" in refused(file)


def test_control_characters_of_a_file_do_not_reach_the_terminal(file: Path) -> None:
    change_metadata(file, "format_version", "\x1b[31m2")
    assert "\x1b" not in refused(file)


def test_failure_to_map_the_file_is_the_machines(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", fail)
    with pytest.raises(MachineError, match="Cannot allocate memory"):
        PackedFile(file)


def test_sizes_are_counted_without_wrapping() -> None:
    assert packed.count((2**40, 2**40)) == 2**80
    assert packed.count(()) == 1


def test_every_tensor_belongs_to_the_model() -> None:
    file = PackedFile(golden.packed("tiny-mini", "int8"))
    config = chatglm.Config(**file.contents.config)
    matrices = {f"{name}.{array}" for name in chatglm.matrices(config) for array in ("codes", "scales")}
    assert file.tensors().keys() == matrices | chatglm.vectors(config).keys()
