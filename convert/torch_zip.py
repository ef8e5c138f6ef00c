"""The checkpoint format of torch >= 1.6: a zip archive around a pickle.

    <root>/data.pkl      the pickle of a dict of tensors; tensors name their storage by key
    <root>/data/<key>    the raw little-endian elements of one storage
    <root>/byteorder     "little" (newer files)         <root>/version and others: not needed

<root> is any one name. The pickle's checksum is compared here, a storage's when its data are read.
"""

import struct
import zlib

from glmcpu import limits
from glmcpu.errors import DataError, printable

from .pickle_reader import read_pickle
from .stored_tensor import ITEM_BYTES, Storage, StoredTensor
from .torch_objects import StorageRef, bind, state_dict
from .weight_file import WeightFile
from .zip_directory import Member, has_end, read_members

_LOCAL_HEADER_BYTES = 30


def read_torch_zip(file: WeightFile) -> dict[str, StoredTensor]:
    """The tensors of the file by name; no data are read but the directory and the pickle.

    Raises DataError, beginning with the file's name, when it is not a whole and sound torch checkpoint.
    """
    if not has_end(file):
        raise _cut_off(file)
    members = read_members(file)
    root = _root(file, members)
    byteorder = members.get(f"{root}/byteorder")
    if byteorder is not None and _content(file, byteorder, f"{root}/byteorder", 16) != b"little":
        raise DataError(f"{file.name}: its numbers are not little-endian; save it again on a little-endian machine")
    data = _content(file, members[f"{root}/data.pkl"], f"{root}/data.pkl", limits.PICKLE_BYTES)
    value, end = read_pickle(data, 0, file.name)
    if end != len(data):
        raise DataError(f"{file.name}: {len(data) - end:,} bytes after the end of its pickle; download it again")
    table = state_dict(value, file.name)
    refs = {ref.storage.key: ref.storage for ref in table.values()}
    storages = {key: _storage(file, members.get(f"{root}/data/{key}"), ref) for key, ref in refs.items()}
    return bind(file, table, storages)


def _root(file: WeightFile, members: dict[str, Member]) -> str:
    roots = {name.split("/")[0] for name in members}
    pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if not pickles:
        raise DataError(f"{file.name}: a zip archive, but no torch checkpoint (it has no data.pkl); download it again")
    if len(pickles) > 1 or len(roots) > 1:
        raise DataError(f"{file.name}: ambiguous archive: {len(roots)} top folders; expected one, as torch.save writes")
    return roots.pop()


def _content(file: WeightFile, member: Member, name: str, limit: int) -> bytes:
    """A small member's bytes, their checksum compared."""
    if member.size_bytes > limit:
        raise DataError(f"{file.name}: {name} has {member.size_bytes:,} bytes, and at most {limit:,} are accepted")
    data = file.read(member.begin, member.size_bytes)
    if zlib.crc32(data) != member.checksum:
        raise DataError(f"{file.name}: checksum mismatch in member '{printable(name, 80)}'; download the file again")
    return data


def _storage(file: WeightFile, member: Member | None, ref: StorageRef) -> Storage:
    key = printable(ref.key, 40)
    if member is None:
        raise DataError(f"{file.name}: storage '{key}' is missing from the archive; download the file again")
    needed = ref.elements * ITEM_BYTES[ref.dtype]
    if needed != member.size_bytes:
        raise DataError(
            f"{file.name}: storage '{key}' of {ref.elements:,} {ref.dtype} needs {needed:,} bytes and has "
            f"{member.size_bytes:,}; download the file again"
        )
    return Storage(file, ref.key, ref.dtype, ref.elements, member.begin, member.checksum)


def _cut_off(file: WeightFile) -> DataError:
    """The error for an archive without its end: cut off, or with bytes behind the end."""
    tail_bytes = min(file.size_bytes, 22 + 0xFFFF)
    end = file.read(file.size_bytes - tail_bytes, tail_bytes).rfind(b"PK\x05\x06")
    if 0 <= end <= tail_bytes - 22:
        return DataError(f"{file.name}: {tail_bytes - end - 22:,} extra bytes after the zip archive; download it again")
    expected = max(file.size_bytes + 1, _stated_bytes(file))
    return DataError(
        f"{file.name}: truncated: expected at least {expected:,} bytes, has {file.size_bytes:,}; download it again"
    )


def _stated_bytes(file: WeightFile) -> int:
    """What the storages named by the pickle need, which torch writes first; 0 where that cannot be read."""
    head = file.read(0, min(file.size_bytes, limits.PICKLE_BYTES))
    if len(head) < _LOCAL_HEADER_BYTES:
        return 0
    begin = _LOCAL_HEADER_BYTES + sum(struct.unpack_from("<2H", head, 26))
    try:
        table = state_dict(read_pickle(head, begin, file.name)[0], file.name)
    except DataError:
        return 0
    return sum(ref.elements * ITEM_BYTES[ref.dtype] for ref in {ref.storage for ref in table.values()})
