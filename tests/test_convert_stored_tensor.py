"""Views of stored bytes against NumPy: offsets, strides, slabs, dtypes and checksums."""

import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from glmcpu.convert.stored_tensor import ITEM_BYTES, Storage, StoredTensor, check_view, read, slabs, verify
from glmcpu.convert.weight_file import WeightFile
from glmcpu.errors import DataError, MachineError


@pytest.fixture
def file(tmp_path: Path) -> Iterator[WeightFile]:
    """8 bytes of something else, then the half floats 0..23."""
    (tmp_path / "m.bin").write_bytes(b"8 bytes." + np.arange(24, dtype="<f2").tobytes())
    file = WeightFile(tmp_path / "m.bin")
    yield file
    file.close()


def halves(file: WeightFile, checksum: int | None = zlib.crc32(np.arange(24, dtype="<f2"))) -> Storage:
    return Storage(file, "0", "f16", 24, 8, checksum)


@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 100])
def test_slabs_are_consecutive_rows(rows: int, file: WeightFile) -> None:
    tensor = StoredTensor(halves(file), 0, (6, 4), (4, 1))
    found = [slab.copy() for slab in slabs(tensor, rows)]
    assert [len(slab) for slab in found] == [min(rows, 6 - first) for first in range(0, 6, rows)]
    np.testing.assert_array_equal(np.concatenate(found), np.arange(24, dtype="f4").reshape(6, 4), strict=True)


@pytest.mark.parametrize(
    ("offset", "shape", "stride"),
    [
        (0, (4, 6), (1, 4)),
        (3, (5, 2), (4, 2)),
        (2, (2, 3, 2), (12, 4, 1)),
        (23, (1, 1), (99, 99)),
        (4, (2, 4), (8, 1)),
        (4, (20,), (1,)),
    ],
)
def test_any_view_equals_numpys(offset: int, shape: tuple[int, ...], stride: tuple[int, ...], file: WeightFile) -> None:
    flat = np.arange(24, dtype="f4")
    expected = np.lib.stride_tricks.as_strided(flat[offset:], shape, [4 * n for n in stride])
    tensor = StoredTensor(halves(file), offset, shape, stride)
    check_view(tensor, "m.bin: tensor 'a'")
    for rows in (1, 2, 9):
        found = [slab.copy() for slab in slabs(tensor, rows)]
        assert all(slab.flags.c_contiguous for slab in found)
        np.testing.assert_array_equal(np.concatenate(found), expected, strict=True)
    np.testing.assert_array_equal(read(tensor), expected, strict=True)


def test_a_scalar_is_read(file: WeightFile) -> None:
    assert read(StoredTensor(halves(file), 5, (), ())) == np.float32(5)


def test_what_was_read_stays_when_something_else_is_read(file: WeightFile) -> None:
    first = read(StoredTensor(halves(file), 0, (2, 4), (4, 1)))
    read(StoredTensor(halves(file), 8, (2, 4), (4, 1)))
    np.testing.assert_array_equal(first.reshape(-1), np.arange(8))


@pytest.mark.parametrize(
    ("offset", "shape", "stride", "fragment"),
    [
        (0, (6, 5), (5, 1), "needs 30 elements and its storage has 24"),
        (1, (6, 4), (4, 1), "needs 25 elements"),
        (24, (), (), "needs 25 elements"),
        (0, (1 << 40, 1 << 40), (1 << 40, 1), "its storage has 24"),
        (0, (6, 4), (0, 1), "shows elements twice"),
        (0, (6, 4), (3, 1), "shows elements twice"),
        (0, (2, 2), (1, 1), "shows elements twice"),
        (0, (0, 4), (4, 1), "expected positive sizes"),
        (0, (4,), (4, 1), "expected positive sizes"),
        (-1, (4,), (1,), "expected positive sizes"),
        (0, (4,), (-1,), "expected positive sizes"),
    ],
)
def test_view_that_leaves_its_storage_or_aliases_is_refused(
    offset: int, shape: tuple[int, ...], stride: tuple[int, ...], fragment: str, file: WeightFile
) -> None:
    with pytest.raises(DataError) as caught:
        check_view(StoredTensor(halves(file), offset, shape, stride), "m.bin: tensor 'a'")
    assert str(caught.value).startswith("m.bin: tensor 'a': ")
    assert fragment in str(caught.value)


def test_wrong_checksum_is_found_whichever_way_the_tensor_is_read(file: WeightFile) -> None:
    storage = halves(file, checksum=1)
    whole = StoredTensor(storage, 0, (6, 4), (4, 1))
    for tensor in (whole, StoredTensor(storage, 4, (5, 4), (4, 1)), StoredTensor(storage, 0, (4, 6), (1, 4))):
        with pytest.raises(DataError, match="checksum mismatch in member 'data/0'"):
            read(tensor)
    found = slabs(whole, 4)
    assert next(found).shape == (4, 4)
    with pytest.raises(DataError, match="checksum mismatch"):
        next(found)
    with pytest.raises(DataError, match="checksum mismatch"):
        verify(storage)


def test_storage_is_verified_once(file: WeightFile, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    real = file.read_into
    monkeypatch.setattr(file, "read_into", lambda begin, out: (reads.append(len(out)), real(begin, out)))
    for begin in range(0, 24, 8):
        read(StoredTensor(halves(file), begin, (2, 4), (4, 1)))
    assert reads == [48, 16, 16, 16]


@pytest.mark.parametrize("dtype", ITEM_BYTES)
def test_every_dtype_is_widened_exactly(dtype: str, tmp_path: Path) -> None:
    floats = {"f64": "<f8", "f32": "<f4", "f16": "<f2"}
    if dtype == "bf16":
        expected = np.array([1.5, -2, np.inf, np.nan, 2.0**-130], "f4")
        raw = (expected.view("u4") >> 16).astype("<u2").tobytes()
    elif dtype in floats:
        values = np.array([1.5, -0.0, 6e-8, np.inf, np.nan], floats[dtype])
        expected, raw = values.astype("f4"), values.tobytes()
    else:
        expected = np.array([1, 0, 1, 1, 0]).astype({"bool": "u1"}.get(dtype, f"{dtype[0]}{ITEM_BYTES[dtype]}"))
        raw = expected.tobytes()
    (tmp_path / "m.bin").write_bytes(raw)
    file = WeightFile(tmp_path / "m.bin")
    found = read(StoredTensor(Storage(file, "0", dtype, 5, 0), 0, (5,), (1,)))
    file.close()
    np.testing.assert_array_equal(found, expected, strict=True)


def test_float64_too_large_for_float32_becomes_infinity_in_silence(tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(np.array([1e300], "<f8").tobytes())
    file = WeightFile(tmp_path / "m.bin")
    assert read(StoredTensor(Storage(file, "0", "f64", 1, 0), 0, (1,), (1,))) == np.inf
    file.close()


def test_file_that_changes_between_slabs_is_an_error(file: WeightFile) -> None:
    found = slabs(StoredTensor(halves(file), 0, (6, 4), (4, 1)), 2)
    next(found)
    file.path.write_bytes(b"short")
    with pytest.raises(MachineError, match="changed while reading"):
        next(found)


def test_rows_below_one_are_a_mistake_of_the_caller(file: WeightFile) -> None:
    with pytest.raises(ValueError, match="rows is 0"):
        slabs(StoredTensor(halves(file), 0, (6, 4), (4, 1)), 0)
