"""The members of a zip archive whose data are stored as they are, found by arithmetic that trusts no number twice.

    | local header, name, extra | data | descriptor |  ...  | central directory | ZIP64 end, locator | end record |
    0                           begin                       directory           size-98              size-22

Every byte belongs to exactly one part: the first local header is at 0, each member begins where the last ended, the
directory follows the last member, and the end record ends the file. So there is no room for a second archive, for
overlapping members, or for bytes that another reader would understand differently. What the two headers of a member
both state must be equal. Compressed or encrypted members and several disks are refused.

torch writes (miniz): flags 0x0808 (descriptor, UTF-8), zeros for sizes and CRC in the local header and the real ones in
a descriptor after the data (16 bytes, or 24 for a member with a ZIP64 field), none after empty data, and always a
ZIP64 end record.
"""

import struct
from dataclasses import dataclass

from glmcpu import limits
from glmcpu.errors import DataError, printable

from .weight_file import WeightFile

_END = struct.Struct("<4s4H2IH")
_LOCATOR = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQ2H2I4Q")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_DESCRIPTOR = struct.Struct("<4s3I")
_DESCRIPTOR64 = struct.Struct("<4sI2Q")
_HAS_DESCRIPTOR, _UTF8 = 0x0008, 0x0800
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF
_ZIP64_FIELD = 1


@dataclass(frozen=True)
class Member:
    """One member's data: `size_bytes` bytes of the file from `begin` on, and their CRC-32."""

    begin: int
    size_bytes: int
    checksum: int


@dataclass(frozen=True)
class _Entry:
    """One record of the central directory."""

    name: bytes
    flags: int
    checksum: int
    size_bytes: int
    header_at: int


def has_end(file: WeightFile) -> bool:
    """Whether the file ends in a zip end record; a download cut off does not."""
    end = file.read(max(0, file.size_bytes - _END.size), min(_END.size, file.size_bytes))
    return len(end) == _END.size and end.startswith(b"PK\x05\x06") and end.endswith(b"\0\0")


def read_members(file: WeightFile) -> dict[str, Member]:
    """The members by name, in file order. The caller has seen that `has_end`.

    Raises DataError, beginning with the file's name, for anything but an archive as pictured above.
    """
    count, directory_at, directory_bytes = _end(file)
    data = file.read(directory_at, directory_bytes)
    entries, at = [], 0
    for _ in range(count):
        entry, at = _central(file, data, at)
        entries.append(entry)
    if at != len(data):
        raise DataError(f"{file.name}: the zip directory holds {len(data) - at:,} bytes more than its {count} members")
    entries.sort(key=lambda entry: entry.header_at)
    members: dict[str, Member] = {}
    header_ends = [entry.header_at for entry in entries[1:]] + [directory_at]
    expected = 0
    for entry, end in zip(entries, header_ends, strict=True):
        name = _checked_name(file, entry.name)
        if name in members:
            raise DataError(f"{file.name}: ambiguous archive: two members are named '{printable(name, 80)}'")
        if entry.header_at != expected:
            raise DataError(f"{file.name}: zip members overlap or leave a hole at byte {expected:,}; download it again")
        members[name] = _member(file, entry, end, printable(name, 80))
        expected = end
    return members


def _end(file: WeightFile) -> tuple[int, int, int]:
    """Number of members, offset and size of the central directory, from the end records."""
    end_at = file.size_bytes - _END.size
    _, disk, first_disk, here, count, size_bytes, at, _ = _END.unpack(file.read(end_at, _END.size))
    records_at = end_at
    tail = _LOCATOR.size + _END64.size
    locator = file.read(max(0, end_at - _LOCATOR.size), min(_LOCATOR.size, end_at))
    if locator.startswith(b"PK\x06\x07"):
        records_at = end_at - tail
        _, locator_disk, stated_at, disks = _LOCATOR.unpack(locator)
        if stated_at != records_at or locator_disk or disks != 1:
            raise DataError(
                f"{file.name}: its ZIP64 locator points to {stated_at:,}, expected {records_at:,}; download it again"
            )
        narrow = (here, count, size_bytes, at)
        record = _END64.unpack(file.read(records_at, _END64.size))
        magic, record_bytes, _, _, disk64, first_disk64, here, count, size_bytes, at = record
        full = (_FULL16, _FULL16, _FULL32, _FULL32)
        agrees = all(n in (w, f) for n, w, f in zip(narrow, (here, count, size_bytes, at), full, strict=True))
        if magic != b"PK\x06\x06" or record_bytes != _END64.size - 12 or disk64 or first_disk64 or not agrees:
            raise DataError(f"{file.name}: the two zip end records disagree; download it again")
    if disk or first_disk or here != count:
        raise DataError(f"{file.name}: zip archives of several parts are not accepted; expected one file of torch.save")
    if not 1 <= count <= limits.ZIP_MEMBERS or size_bytes > limits.ZIP_DIRECTORY_BYTES:
        raise DataError(
            f"{file.name}: {count:,} zip members in a directory of {size_bytes:,} bytes; expected 1 to "
            f"{limits.ZIP_MEMBERS:,} members in at most {limits.ZIP_DIRECTORY_BYTES:,} bytes"
        )
    if at + size_bytes != records_at:
        raise DataError(
            f"{file.name}: the zip directory ends at byte {at + size_bytes:,}, expected {records_at:,}; "
            "the file lost or gained bytes, download it again"
        )
    return count, at, size_bytes


def _central(file: WeightFile, data: bytes, at: int) -> tuple[_Entry, int]:
    """The directory record at data[at:], and the index after it."""
    if len(data) - at < _CENTRAL.size:
        raise DataError(f"{file.name}: the zip directory ends inside a record; download the file again")
    (magic, _, _, flags, method, _, _, checksum, stored_bytes, size_bytes, name_bytes, extra_bytes, comment_bytes,
     disk, _, _, header_at) = _CENTRAL.unpack_from(data, at)  # fmt: skip
    end = at + _CENTRAL.size + name_bytes + extra_bytes
    if magic != b"PK\x01\x02" or end > len(data) or comment_bytes or disk:
        raise DataError(f"{file.name}: the zip directory is damaged at its byte {at:,}; download the file again")
    name = data[at + _CENTRAL.size : end - extra_bytes]
    what = f"zip member '{printable(name.decode('utf-8', 'backslashreplace'), 80)}'"
    if flags & ~(_HAS_DESCRIPTOR | _UTF8):
        raise DataError(
            f"{file.name}: {what} has flags 0x{flags:04x} (encrypted or unknown); expected a torch checkpoint"
        )
    if method:
        raise DataError(
            f"{file.name}: {what} is compressed; compressed members are not accepted, re-save it with torch"
        )
    wide = _zip64(file, data[end - extra_bytes : end], [size_bytes, stored_bytes, header_at], what)
    if wide[0] != wide[1]:
        raise DataError(f"{file.name}: {what} states {wide[1]:,} bytes stored of {wide[0]:,}; download the file again")
    return _Entry(name, flags, checksum, wide[0], wide[2]), end


def _zip64(file: WeightFile, extra: bytes, narrow: list[int], what: str) -> list[int]:
    """`narrow` with each full 32-bit number replaced by its 64-bit one from the ZIP64 field of `extra`."""
    full = [i for i, n in enumerate(narrow) if n == _FULL32]
    values = list(narrow)
    at = 0
    while full:
        if len(extra) - at < 4:
            raise DataError(f"{file.name}: {what} lacks its ZIP64 sizes; download the file again")
        field, n = struct.unpack_from("<2H", extra, at)
        if field == _ZIP64_FIELD:
            if n != 8 * len(full) or at + 4 + n > len(extra):
                raise DataError(f"{file.name}: {what} has a damaged ZIP64 field; download the file again")
            for i, value in zip(full, struct.unpack_from(f"<{len(full)}Q", extra, at + 4), strict=True):
                values[i] = value
            break
        at += 4 + n
    return values


def _checked_name(file: WeightFile, raw: bytes) -> str:
    """The name as text. It is only ever looked up, never used as a path, and yet must be harmless as one."""
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        name = ""
    parts = name.split("/")
    harmless = name.isprintable() and "\\" not in name and not {"", ".", ".."} & set(parts)
    if not harmless or len(raw) > limits.ZIP_NAME_BYTES:
        shown = printable(raw.decode("utf-8", "backslashreplace"), 60)
        raise DataError(f"{file.name}: zip member name '{shown}' is refused; expected a torch checkpoint")
    return name


def _member(file: WeightFile, entry: _Entry, end: int, name: str) -> Member:
    """Reads the member's local header and descriptor; it must fill the bytes from header_at to `end` exactly."""
    disagree = DataError(f"{file.name}: zip headers disagree for member '{name}'; download the file again")
    if end - entry.header_at < _LOCAL.size + len(entry.name) + entry.size_bytes:
        raise DataError(
            f"{file.name}: zip member '{name}' of {entry.size_bytes:,} bytes does not fit in "
            f"{end - entry.header_at:,} (members overlap); download the file again"
        )
    header = _LOCAL.unpack(file.read(entry.header_at, _LOCAL.size))
    magic, _, flags, method, _, _, checksum, stored_bytes, size_bytes, name_bytes, extra_bytes = header
    rest_bytes = name_bytes + extra_bytes
    begin = entry.header_at + _LOCAL.size + rest_bytes
    after = end - begin - entry.size_bytes
    if magic != b"PK\x03\x04" or flags != entry.flags or method or after < 0:
        raise disagree
    rest = file.read(entry.header_at + _LOCAL.size, rest_bytes)
    if rest[:name_bytes] != entry.name:
        raise disagree
    stated = (checksum, stored_bytes, size_bytes)
    if _FULL32 in stated[1:]:
        wide = _zip64(file, rest[name_bytes:], [size_bytes, stored_bytes], f"zip member '{name}'")
        stated = (checksum, wide[1], wide[0])
    truth = (entry.checksum, entry.size_bytes, entry.size_bytes)
    if flags & _HAS_DESCRIPTOR:
        if any(n not in (0, true) for n, true in zip(stated, truth, strict=True)):
            raise disagree
        form = {_DESCRIPTOR.size: _DESCRIPTOR, _DESCRIPTOR64.size: _DESCRIPTOR64}.get(after)
        if form is None or form.unpack(file.read(end - after, after)) != (b"PK\x07\x08", *truth):
            raise disagree
    elif stated != truth or after:
        raise disagree
    return Member(begin, entry.size_bytes, entry.checksum)
