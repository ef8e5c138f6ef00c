"""Zip archives: members are found where they are, and wrong numbers and names are refused."""

import io
import random
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from torch_files import ZipWriter

from glmcpu import limits
from glmcpu.convert.weight_file import WeightFile
from glmcpu.convert.zip_directory import Member, has_end, read_members
from glmcpu.errors import DataError, GlmcpuError

CONTENTS = {"data.pkl": b"pickle", "byteorder": b"little", "data/0": b"x" * 300, "data/1": b"", "version": b"3\n"}


def archive(root: str = "m", full: int = 0xFFFFFFFF, contents: dict[str, bytes] = CONTENTS) -> bytes:
    file = io.BytesIO()
    writer = ZipWriter(file, root, full)
    for name, data in contents.items():
        writer.add(name, len(data), [data])
    writer.close()
    return file.getvalue()


def members(path: Path, content: bytes) -> dict[str, Member]:
    path.write_bytes(content)
    file = WeightFile(path)
    try:
        return read_members(file)
    finally:
        file.close()


def contents(path: Path) -> dict[str, bytes]:
    raw = path.read_bytes()
    return {name: raw[m.begin : m.begin + m.size_bytes] for name, m in members(path, raw).items()}


def record(content: bytes, magic: bytes, number: int) -> int:
    """Where the number-th header with this magic begins."""
    at = -1
    for _ in range(number + 1):
        at = content.index(magic, at + 1)
    return at


def put(magic: bytes, number: int, offset: int, value: bytes) -> Callable[[bytes], bytes]:
    """A change of one field of one header."""

    def change(content: bytes) -> bytes:
        at = record(content, magic, number) + offset
        return content[:at] + value + content[at + len(value) :]

    return change


def chain(*changes: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        for one in changes:
            content = one(content)
        return content

    return change


LOCAL, CENTRAL, DESCRIPTOR = b"PK\x03\x04", b"PK\x01\x02", b"PK\x07\x08"
END, END64, LOCATOR = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
u16, u32, u64 = (struct.Struct(form).pack for form in ("<H", "<I", "<Q"))
HEADER_1 = u32(record(archive(), LOCAL, 1))

CHANGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "junk before": (lambda raw: b"junk" + raw, "ZIP64 locator points to"),
    "bytes lost inside": (lambda raw: raw[:200] + raw[240:], "ZIP64 locator points to"),
    "no ZIP64 record, bytes lost": (lambda raw: raw[:200] + raw[240:-98] + raw[-22:], "lost or gained bytes"),
    "local name differs": (put(LOCAL, 1, 30, b"M"), "zip headers disagree for member 'm/byteorder'"),
    "central name differs": (put(CENTRAL, 1, 46, b"M"), "zip headers disagree for member 'M/byteorder'"),
    "local magic": (put(LOCAL, 2, 0, b"PK\x03\x05"), "zip headers disagree"),
    "local method": (put(LOCAL, 2, 8, u16(8)), "zip headers disagree"),
    "local flags": (put(LOCAL, 2, 6, u16(0x0800)), "zip headers disagree"),
    "local size": (put(LOCAL, 2, 22, u32(301)), "zip headers disagree"),
    "local checksum": (put(LOCAL, 2, 14, u32(1)), "zip headers disagree"),
    "local extra too long": (put(LOCAL, 2, 28, u16(0xFFFF)), "zip headers disagree"),
    "descriptor magic": (put(DESCRIPTOR, 2, 0, b"PK\x07\x09"), "zip headers disagree"),
    "descriptor checksum": (put(DESCRIPTOR, 2, 4, u32(1)), "zip headers disagree"),
    "descriptor size": (put(DESCRIPTOR, 2, 8, u32(1)), "zip headers disagree"),
    "size too small": (chain(put(CENTRAL, 2, 20, u32(4)), put(CENTRAL, 2, 24, u32(4))), "zip headers disagree"),
    "size too large": (chain(put(CENTRAL, 2, 20, u32(9999)), put(CENTRAL, 2, 24, u32(9999))), "members overlap"),
    "size negative as signed": (
        chain(put(CENTRAL, 2, 20, u32(0xFFFFFFFE)), put(CENTRAL, 2, 24, u32(0xFFFFFFFE))),
        "members overlap",
    ),
    "stored and real size differ": (put(CENTRAL, 2, 20, u32(4)), "states 4 bytes stored of 300"),
    "compressed": (chain(put(CENTRAL, 2, 10, u16(8)), put(LOCAL, 2, 8, u16(8))), "is compressed"),
    "encrypted": (chain(put(CENTRAL, 2, 8, u16(0x0809)), put(LOCAL, 2, 6, u16(0x0809))), "has flags 0x0809"),
    "unknown flag": (chain(put(CENTRAL, 2, 8, u16(0x8808)), put(LOCAL, 2, 6, u16(0x8808))), "has flags 0x8808"),
    "two members in one place": (put(CENTRAL, 2, 42, HEADER_1), "does not fit in 0 (members overlap)"),
    "first member not at 0": (put(CENTRAL, 0, 42, u32(1)), "overlap or leave a hole at byte 0"),
    "member behind the directory": (put(CENTRAL, 4, 42, u32(0x7FFFFFFF)), "zip headers disagree"),
    "member comment": (put(CENTRAL, 4, 32, u16(1)), "directory is damaged"),
    "member on another disk": (put(CENTRAL, 4, 34, u16(1)), "directory is damaged"),
    "central magic": (put(CENTRAL, 3, 0, b"PK\x01\x03"), "directory is damaged"),
    "central name too long": (put(CENTRAL, 4, 28, u16(0xFFFF)), "directory is damaged"),
    "ZIP64 field missing": (put(CENTRAL, 2, 24, u32(0xFFFFFFFF)), "lacks its ZIP64 sizes"),
    "one member fewer": (chain(put(END64, 0, 24, u64(4) * 2), put(END, 0, 8, u16(4) * 2)), "bytes more than its 4"),
    "one member more": (chain(put(END64, 0, 24, u64(6) * 2), put(END, 0, 8, u16(6) * 2)), "ends inside a record"),
    "no members": (chain(put(END64, 0, 24, u64(0) * 2), put(END, 0, 8, u16(0) * 2)), "0 zip members"),
    "ten million members": (
        chain(put(END64, 0, 24, u64(10_000_000) * 2), put(END, 0, 8, u16(0xFFFF) * 2)),
        "10,000,000 zip members",
    ),
    "count wrapped at 65535": (put(END64, 0, 24, u64(65536 + 5) * 2), "end records disagree"),
    "ZIP64 record elsewhere": (put(LOCATOR, 0, 8, u64(0)), "ZIP64 locator points to 0"),
    "ZIP64 locator of 2 disks": (put(LOCATOR, 0, 16, u32(2)), "ZIP64 locator"),
    "ZIP64 magic": (put(END64, 0, 0, b"PK\x06\x08"), "end records disagree"),
    "ZIP64 record longer": (put(END64, 0, 4, u64(45)), "end records disagree"),
    "ZIP64 offset differs": (put(END64, 0, 48, u64(1)), "end records disagree"),
    "another disk": (put(END, 0, 4, u16(1)), "archives of several parts"),
    "directory of a gigabyte": (
        chain(put(END64, 0, 40, u64(1 << 30)), put(END, 0, 12, u32(0xFFFFFFFF))),
        "directory of 1,073,741,824 bytes",
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_archive_with_a_wrong_number_is_refused_with_one_line_that_names_the_file(case: str, tmp_path: Path) -> None:
    change, fragment = CHANGES[case]
    with pytest.raises(DataError) as caught:
        members(tmp_path / "m.bin", change(archive()))
    message = str(caught.value)
    assert "m.bin: " in message
    assert fragment in message
    assert len(message) <= 300
    assert message.isprintable()


@pytest.mark.parametrize(
    "root", ["..", ".", "", "a/../..", "/etc", "a\\b", "a\0b", "a\x1b[2J", "C:/\u202e", "long" * 200]
)
def test_member_name_that_is_no_plain_path_is_refused(root: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"member name .* is refused") as caught:
        members(tmp_path / "m.bin", archive(root))
    assert len(str(caught.value)) <= 300
    assert str(caught.value).isprintable()


def test_member_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is refused"):
        members(tmp_path / "m.bin", archive().replace(b"m/version", b"m/\xffersion"))


def test_two_members_of_one_name_are_ambiguous(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="ambiguous archive: two members are named 'm/data/0'"):
        members(tmp_path / "m.bin", archive().replace(b"m/data/1", b"m/data/0"))


@pytest.mark.parametrize("full", [0xFFFFFFFF, 300, 100, 1])
def test_members_of_torch_archives_are_found_with_and_without_zip64_fields(full: int, tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(archive("m", full))
    expected = {f"m/{name}": data for name, data in CONTENTS.items()}
    assert contents(tmp_path / "m.bin") == expected
    with zipfile.ZipFile(tmp_path / "m.bin") as theirs:
        assert {name: theirs.read(name) for name in theirs.namelist()} == expected


@pytest.mark.parametrize("change", [put(b"\1\0\x10\0", 1, 2, u16(24)), put(b"\1\0\x10\0", 1, 0, u16(2))])
def test_damaged_zip64_field_is_refused(change: Callable[[bytes], bytes], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="ZIP64"):
        members(tmp_path / "m.bin", change(archive("m", 300)))


def test_archive_of_pythons_zipfile_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.bin", "w") as writer:
        for name, data in CONTENTS.items():
            with writer.open(f"m/{name}", "w", force_zip64=name == "data/0") as member:
                member.write(data)
    assert contents(tmp_path / "m.bin") == {f"m/{name}": data for name, data in CONTENTS.items()}


def test_members_to_the_limit_are_read(tmp_path: Path) -> None:
    n = limits.ZIP_MEMBERS
    many = {str(i): b"" for i in range(n)}
    assert len(members(tmp_path / "m.bin", archive("m", contents=many))) == n
    with pytest.raises(DataError, match="4,097 zip members"):
        members(tmp_path / "m.bin", archive("m", contents=many | {"one more": b""}))


@pytest.mark.parametrize(
    ("content", "whole"), [(b"", False), (b"PK\x05\x06", False), (archive()[:-1], False), (archive(), True)]
)
def test_end_is_seen_only_at_the_end(content: bytes, whole: bool, tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(content)
    file = WeightFile(tmp_path / "m.bin")
    assert has_end(file) is whole
    file.close()


def test_flipped_bytes_give_members_inside_the_file_or_an_error(tmp_path: Path) -> None:
    rng = random.Random(0)
    good = archive("m", 300)
    begin = good.index(CENTRAL)
    for _ in range(2000):
        content = bytearray(good)
        for _ in range(rng.choice((1, 2, 4))):
            content[rng.choice((rng.randrange(len(good)), rng.randrange(begin, len(good))))] = rng.randrange(256)
        try:
            found = members(tmp_path / "m.bin", bytes(content))
        except GlmcpuError:
            continue
        assert all(0 < m.begin <= m.begin + m.size_bytes < len(good) for m in found.values())


class _Sparse(io.FileIO):
    """Leaves a hole in the file for every block of zeros."""

    zeros = memoryview(bytes(64 << 20))

    def write(self, data: object) -> int:  # type: ignore[override]
        if data is self.zeros:
            self.seek(len(self.zeros), 1)
            return len(self.zeros)
        return super().write(data)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="files with holes are made another way there")
def test_archive_with_a_member_of_5_gb_is_read(tmp_path: Path) -> None:
    with _Sparse(tmp_path / "m.bin", "w") as file:
        writer = ZipWriter(file, "m")
        writer.add("data/0", 80 * len(_Sparse.zeros), [_Sparse.zeros] * 80)
        writer.add("data/1", 5, [b"after"])
        writer.close()
    file = WeightFile(tmp_path / "m.bin")
    found = read_members(file)
    assert found["m/data/0"].size_bytes == 5 << 30
    assert file.read(found["m/data/1"].begin, 5) == b"after"
    file.close()
