"""The zip format of torch: every dtype and layout is read, whatever is unsound gets one sentence."""

import io
import random
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from torch_files import BF16, View, ZipWriter, save_torch, state_dict_pickle, write_torch_zip

from glmcpu import limits
from glmcpu.convert import stored_tensor
from glmcpu.convert.stored_tensor import StoredTensor
from glmcpu.convert.torch_zip import read_torch_zip
from glmcpu.convert.weight_file import WeightFile
from glmcpu.errors import DataError, GlmcpuError

HALF = np.arange(12, dtype="f2").reshape(3, 4)
FLOAT = np.linspace(-1, 1, 4, dtype="f4")
VIEWS = {"a": View("HalfStorage", "0", 12, 0, (3, 4), (4, 1)), "b": View("FloatStorage", "1", 4, 0, (4,), (1,))}
STORAGES = {"0": HALF.tobytes(), "1": FLOAT.tobytes()}


def archive(
    views: dict[str, View] = VIEWS,
    storages: dict[str, bytes] = STORAGES,
    pickle: bytes | None = None,
    byteorder: bytes | None = b"little",
) -> bytes:
    file = io.BytesIO()
    members = {key: (len(data), [data]) for key, data in storages.items()}
    write_torch_zip(file, "m", pickle or state_dict_pickle(views), members, byteorder=byteorder)
    return file.getvalue()


def plain_zip(members: Iterable[tuple[str, str, bytes]]) -> bytes:
    """Members of any root."""
    file = io.BytesIO()
    writer = ZipWriter(file, "")
    for root, name, data in members:
        writer.root = root
        writer.add(name, len(data), [data])
    writer.close()
    return file.getvalue()


def tensors(path: Path, content: bytes) -> dict[str, StoredTensor]:
    """The tensors, after all their values have been read."""
    path.write_bytes(content)
    file = WeightFile(path)
    try:
        found = read_torch_zip(file)
        for tensor in found.values():
            stored_tensor.read(tensor)
        return found
    finally:
        file.close()


def one(**changes: object) -> bytes:
    """An archive whose tensor "a" is described otherwise."""
    fields = {"storage_type": "HalfStorage", "key": "0", "elements": 12, "offset": 0, "shape": (3, 4), "stride": (4, 1)}
    return archive({"a": View(**(fields | changes))})  # type: ignore[arg-type]


GOOD = archive()
PICKLE = state_dict_pickle(VIEWS)
CUTS = {
    "in the first header": 20,
    "in the pickle": 300,
    "in the data": GOOD.index(STORAGES["0"]) + 5,
    "in the directory": GOOD.index(b"PK\x01\x02") + 50,
    "in the ZIP64 record": len(GOOD) - 60,
    "in the end record": len(GOOD) - 10,
    "before the last byte": len(GOOD) - 1,
}
REFUSED: dict[str, tuple[bytes, str]] = {
    **{f"cut {place}": (GOOD[:n], f"bytes, has {n:,}; download it again") for place, n in CUTS.items()},
    "bytes after the end": (GOOD + b"\x80\x02N.", "4 extra bytes after the zip archive"),
    "zip comment": (GOOD[:-2] + b"\x04\x00junk", "4 extra bytes after the zip archive"),
    "comment that hides a second end": (GOOD[:-2] + b"\x16\x00" + GOOD[-22:], "end"),
    "no data.pkl": (plain_zip([("m", "a.txt", b"text")]), "no torch checkpoint (it has no data.pkl)"),
    "two data.pkl": (plain_zip([("m", "data.pkl", PICKLE), ("n", "data.pkl", PICKLE)]), "ambiguous archive"),
    "two top folders": (plain_zip([("m", "data.pkl", PICKLE), ("n", "data/0", b"")]), "ambiguous archive: 2"),
    "big-endian": (archive(byteorder=b"big"), "not little-endian"),
    "long byteorder": (archive(byteorder=b"little" * 9), "at most 16"),
    "pickle checksum": (GOOD.replace(b"aq\x01c", b"zq\x01c"), "checksum mismatch in member 'm/data.pkl'"),
    "storage checksum": (
        GOOD.replace(STORAGES["0"], bytes(24)),
        "checksum mismatch in member 'data/0'",
    ),
    "bytes after the pickle": (archive(pickle=PICKLE + b"N."), "2 bytes after the end of its pickle"),
    "pickle cut": (archive(pickle=PICKLE[:-1]), "ends early"),
    "pickle of a list": (archive(pickle=b"\x80\x02]."), "holds a list"),
    "evil pickle": (archive(pickle=b"\x80\x02cos\nsystem\nX\x01\0\0\0a\x85R."), "refuses pickle global 'os.system'"),
    "storage missing": (archive(storages={"0": STORAGES["0"]}), "storage '1' is missing from the archive"),
    "storage key as path": (one(key="../data.pkl"), "storage '../data.pkl' is missing from the archive"),
    "storage too small": (archive(storages=STORAGES | {"0": b"1234"}), "of 12 f16 needs 24 bytes and has 4"),
    "storage too large": (archive(storages=STORAGES | {"0": bytes(99)}), "of 12 f16 needs 24 bytes and has 99"),
    "storage of 2**62": (one(elements=1 << 62), "needs 9,223,372,036,854,775,808 bytes and has 24"),
    "storage of other type": (one(storage_type="FloatStorage"), "of 12 f32 needs 48 bytes and has 24"),
    "storage of unknown type": (one(storage_type="ComplexHalfStorage"), "refuses pickle global"),
    "one storage, two descriptions": (
        archive({"a": VIEWS["a"], "b": View("FloatStorage", "0", 6, 0, (6,), (1,))}),
        "storage '0' is described in two ways",
    ),
    "offset past the end": (one(offset=1), "needs 13 elements and its storage has 12"),
    "offset of 2**62": (one(offset=1 << 62), "its storage has 12"),
    "shape too large": (one(shape=(4, 4)), "needs 16 elements and its storage has 12"),
    "shape that wraps 2**64": (one(shape=(1 << 32, 1 << 32), stride=(1 << 32, 1)), "its storage has 12"),
    "empty shape": (one(shape=(0, 4)), "expected positive sizes"),
    "stride 0 (expand)": (one(stride=(0, 1)), "shows elements twice"),
    "stride that overlaps": (one(shape=(3, 4), stride=(3, 1)), "shows elements twice"),
    "negative stride": (one(stride=(-4, 1)), "bad offset, shape or stride"),
    "huge stride": (one(stride=(1 << 60, 1)), "its storage has 12"),
    "rank 5": (one(shape=(1,) * 5, stride=(1,) * 5), "5 dimensions"),
    "no shape, offset past the end": (one(shape=(), stride=(), offset=12), "needs 13 elements"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unsound_checkpoint_is_refused_with_one_line_that_names_the_file(case: str, tmp_path: Path) -> None:
    content, fragment = REFUSED[case]
    with pytest.raises(DataError) as caught:
        tensors(tmp_path / "m.bin", content)
    message = str(caught.value)
    assert "m.bin: " in message
    assert fragment in message
    assert len(message) <= 300
    assert message.isprintable()


def test_truncated_checkpoint_says_what_its_tensors_need(tmp_path: Path) -> None:
    weights = {"a": np.zeros(50_000, "f2"), "b": np.zeros(100, "f4")}
    save_torch(tmp_path / "m.bin", weights)
    with pytest.raises(DataError, match="expected at least 100,400 bytes, has 60,000; download it again"):
        tensors(tmp_path / "m.bin", (tmp_path / "m.bin").read_bytes()[:60_000])


def test_every_dtype_and_layout_that_torch_saves_is_read(tmp_path: Path) -> None:
    base = np.arange(20, dtype="f2")
    weights = {
        "whole": HALF,
        "transposed": HALF.T,
        "offset": base[3:15].reshape(3, 4),
        "columns": base.reshape(4, 5)[:, 1:3],
        "scalar": np.array(7, "i8").reshape(()),
        "double": np.array([1 / 3]),
        "bfloat": np.array([0x3F80, 0xC000], "u2").view(BF16),
        "int8": np.array([[-128, 127]], "i1"),
        "uint8": np.array([255], "u1"),
        "int16": np.array([-3], "i2"),
        "int32": np.array([-5], "i4"),
        "bool": np.array([True, False]),
    }
    save_torch(tmp_path / "m.bin", weights, ordered=True)
    file = WeightFile(tmp_path / "m.bin")
    read = {name: stored_tensor.read(tensor) for name, tensor in read_torch_zip(file).items()}
    file.close()
    assert read.keys() == weights.keys()
    np.testing.assert_array_equal(read.pop("bfloat"), np.array([1, -2], "f4"), strict=True)
    np.testing.assert_array_equal(read.pop("bool"), np.array([1, 0], "u1"), strict=True)
    for name, value in read.items():
        expected = weights[name]
        expected = expected.astype("f4") if expected.dtype.kind == "f" else expected
        np.testing.assert_array_equal(value, expected, strict=True)


def test_archive_without_byteorder_is_read(tmp_path: Path) -> None:
    assert tensors(tmp_path / "m.bin", archive(byteorder=None)).keys() == {"a", "b"}


def test_pickle_larger_than_the_limit_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PICKLE_BYTES", len(PICKLE))
    assert tensors(tmp_path / "m.bin", GOOD)
    monkeypatch.setattr(limits, "PICKLE_BYTES", len(PICKLE) - 1)
    with pytest.raises(DataError, match=r"m/data\.pkl has \d+ bytes, and at most"):
        tensors(tmp_path / "m.bin", GOOD)


def test_flipped_bytes_give_the_same_values_or_an_error(tmp_path: Path) -> None:
    rng = random.Random(0)
    for _ in range(2000):
        content = bytearray(GOOD)
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        try:
            found = tensors(tmp_path / "m.bin", bytes(content))
        except GlmcpuError:
            continue
        assert found.keys() == VIEWS.keys()
