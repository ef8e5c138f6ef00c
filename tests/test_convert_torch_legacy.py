"""The legacy format of torch: values as they were saved, and one sentence for what is unsound."""

import random
import struct
from pathlib import Path

import numpy as np
import pytest
from torch_files import Pickler, View, legacy_head, save_torch_legacy, state_dict_pickle

from glmcpu.convert import stored_tensor
from glmcpu.convert.stored_tensor import StoredTensor
from glmcpu.convert.torch_legacy import MAGIC, read_torch_legacy
from glmcpu.convert.weight_file import WeightFile
from glmcpu.errors import DataError, GlmcpuError

WEIGHTS = {"a": np.arange(12, dtype="f2").reshape(3, 4), "b": np.linspace(-1, 1, 4, dtype="f4")}
VIEWS = {"a": View("HalfStorage", "7", 12, 0, (3, 4), (4, 1)), "b": View("FloatStorage", "8", 4, 0, (4,), (1,))}
PICKLE = state_dict_pickle(VIEWS, legacy=True)
DATA = b"".join(struct.pack("<q", value.size) + value.tobytes() for value in WEIGHTS.values())
HEAD = legacy_head(PICKLE, ["7", "8"])
GOOD = HEAD + DATA


def tensors(path: Path, content: bytes) -> dict[str, StoredTensor]:
    """The tensors, after all their values have been read."""
    path.write_bytes(content)
    file = WeightFile(path)
    try:
        found = read_torch_legacy(file)
        for tensor in found.values():
            stored_tensor.read(tensor)
        return found
    finally:
        file.close()


def disagree() -> bytes:
    other = {"c": View("HalfStorage", "8", 4, 0, (4,), (1,)), "b": VIEWS["b"]}
    return legacy_head(state_dict_pickle(other, legacy=True), ["8"]) + DATA[-24:]


REFUSED: dict[str, tuple[bytes, str]] = {
    "cut in the head": (GOOD[:200], "ends early"),
    "cut in a count": (GOOD[: len(HEAD) + 4], f"expected at least {len(HEAD) + 8:,} bytes, has {len(HEAD) + 4:,}"),
    "cut in the data": (GOOD[:-5], f"truncated: expected at least {len(GOOD):,} bytes, has {len(GOOD) - 5:,}"),
    "bytes after the end": (GOOD + b"PK", "2 extra bytes after the last storage"),
    "other protocol": (GOOD.replace(b"M\xe9\x03.", b"M\xea\x03."), "not the legacy format"),
    "evil object": (GOOD.replace(PICKLE, b"\x80\x02cos\nsystem\n)R."), "refuses pickle global 'os.system'"),
    "object is a list": (GOOD.replace(PICKLE, b"\x80\x02]."), "holds a list"),
    "a key too few": (legacy_head(PICKLE, ["7"]) + DATA, "its list of storages"),
    "a key too many": (legacy_head(PICKLE, ["7", "8", "9"]) + DATA, "its list of storages"),
    "a key twice": (legacy_head(PICKLE, ["7", "8", "8"]) + DATA, "its list of storages"),
    "a key that is a number": (HEAD[:-2] + b"K\5e." + DATA, "its list of storages"),
    "another key": (legacy_head(PICKLE, ["7", "9"]) + DATA, "its list of storages"),
    "keys are a text": (HEAD[: HEAD.rindex(b"\x80\x02")] + b"\x80\x02X\1\0\0\x007." + DATA, "its list of storages"),
    "count differs": (HEAD + struct.pack("<q", 13) + DATA[8:], "13 elements in the data and 12 in the pickle"),
    "count negative": (HEAD + struct.pack("<q", -1) + DATA[8:], "-1 elements in the data"),
    "two descriptions": (disagree(), "storage '8'"),
    "offset past the end": (
        legacy_head(state_dict_pickle({"b": View("FloatStorage", "8", 4, 1, (4,), (1,))}, legacy=True), ["8"])
        + DATA[-24:],
        "needs 5 elements",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unsound_checkpoint_is_refused_with_one_line_that_names_the_file(case: str, tmp_path: Path) -> None:
    content, fragment = REFUSED[case]
    assert content.startswith(MAGIC)
    with pytest.raises(DataError) as caught:
        tensors(tmp_path / "m.bin", content)
    message = str(caught.value)
    assert "m.bin: " in message
    assert fragment in message
    assert len(message) <= 300
    assert message.isprintable()


def test_head_of_a_big_endian_machine_is_refused(tmp_path: Path) -> None:
    machine = Pickler()
    machine.out += b"}("
    machine.text("little_endian")
    machine.out += b"\x89u."
    content = MAGIC + b"\x80\x02M\xe9\x03." + machine.out + PICKLE
    with pytest.raises(DataError, match="not the legacy format of torch for little-endian machines"):
        tensors(tmp_path / "m.bin", bytes(content))


@pytest.mark.parametrize("ordered", [False, True])
def test_values_are_those_that_were_saved(ordered: bool, tmp_path: Path) -> None:
    shared = np.arange(20, dtype="f2")
    weights = WEIGHTS | {"part": shared[4:], "transposed": shared.reshape(4, 5).T}
    save_torch_legacy(tmp_path / "m.bin", weights, ordered=ordered)
    file = WeightFile(tmp_path / "m.bin")
    for name, tensor in read_torch_legacy(file).items():
        np.testing.assert_array_equal(stored_tensor.read(tensor), weights[name].astype("f4"), strict=True)
    file.close()


def test_flipped_bytes_give_tensors_or_an_error(tmp_path: Path) -> None:
    rng = random.Random(0)
    for _ in range(1000):
        content = bytearray(GOOD)
        content[rng.randrange(len(MAGIC), len(content))] ^= 1 << rng.randrange(8)
        try:
            tensors(tmp_path / "m.bin", bytes(content))
        except GlmcpuError:
            continue
