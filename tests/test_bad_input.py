"""Bad input through the whole command line: every refusal is one line with a way forward, and changes nothing.

The contract of a refusal: its exit code, one line of at most 300 printable characters on stderr that names the file,
nothing on stdout, no file changed or left behind, within a second, with at most 64 MB more memory than before.
"""

import contextlib
import io
import json
import os
import re
import shutil
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_checkpoints import CANARY, POINTER, ROWS_OF_ALL
from tiny_checkpoint import write_checkpoint

from glmcpu import cli, packed
from glmcpu.safetensors_header import Entry

PATIENCE_S = 5.0  # the promise is 1 s; the machines that run tests are shared
MEMORY_BYTES = 64 << 20


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and beside it earlier.safetensors made of it."""
    folder = write_checkpoint(tmp_path_factory.mktemp("good") / "checkpoint")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert cli.main(["convert", str(folder), str(folder.parent / "earlier.safetensors")]) == 0
    return folder


@pytest.fixture
def place(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a copy of the checkpoint and an earlier packed model."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(good, tmp_path / "checkpoint")
    shutil.copyfile(good.parent / "earlier.safetensors", tmp_path / "earlier.safetensors")
    return tmp_path


def refused(capfd: pytest.CaptureFixture[str], *arguments: object, code: int) -> str:
    """The line of a refusal that keeps the contract."""
    before, memory_bytes, began_s = _listing(Path()), _reset_peak(), time.monotonic()
    found = cli.main([str(argument) for argument in arguments])
    took_s, more_bytes = time.monotonic() - began_s, _peak_bytes() - memory_bytes
    out, err = capfd.readouterr()
    assert re.fullmatch(r"glmcpu: error: [^\n]+\n", err), err
    assert found == code, err
    assert len(err) <= 301
    assert err[:-1].isprintable()
    assert out == ""
    assert _listing(Path()) == before
    assert took_s < PATIENCE_S
    assert more_bytes <= MEMORY_BYTES
    return err


def _listing(folder: Path) -> dict[str, bytes | None]:
    """Every entry; the content of packed models."""
    return {str(path): path.read_bytes() if path.name == "earlier.safetensors" else None for path in folder.rglob("*")}


def _reset_peak() -> int:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak_bytes()


def _peak_bytes() -> int:
    """The largest memory of this process since _reset_peak; 0 where the system does not say (all but Linux)."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status)[1])  # type: ignore[index]


@pytest.mark.parametrize("row", ROWS_OF_ALL)
def test_bad_checkpoint_is_refused(row: str, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    spoil, words = ROWS_OF_ALL[row]
    spoil(Path("checkpoint"))
    line = refused(capfd, "convert", "checkpoint", "earlier.safetensors", code=3)
    assert line.startswith("glmcpu: error: checkpoint")
    for word in words:
        assert word in line
    assert not Path(CANARY).exists()


def test_python_files_beside_the_weights_are_never_run(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("modeling_chatglm.py", "configuration_chatglm.py", "tokenization_chatglm.py", "__init__.py"):
        (Path("checkpoint") / name).write_text(f"open({CANARY!r}, 'w')")
    config = json.loads(Path("checkpoint/config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration"}
    Path("checkpoint/config.json").write_text(json.dumps(config))
    assert cli.main(["convert", "checkpoint", "new.safetensors"]) == 0
    assert not Path(CANARY).exists()


Change = Callable[[dict[str, Any], dict[str, Any]], object]


def rewrite(path: Path, change: Change, data: Callable[[bytes], bytes] = lambda raw: raw) -> None:
    """Changes a packed file's tables and data so that digest and lengths are right again: damage made on purpose."""
    raw = path.read_bytes()
    begin = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:begin])
    texts = header["__metadata__"]
    tables = {key: json.loads(texts[key]) for key in ("config", "formats", "source", "checksums")}
    change(header | {"header": header}, tables)
    texts |= {key: packed._json(value) for key, value in tables.items()}
    texts.pop("digest", None)
    entries = {k: Entry(v["dtype"], tuple(v["shape"]), *v["data_offsets"]) for k, v in header.items() if k[0] != "_"}
    texts["digest"] = packed._digest(texts, dict(sorted(entries.items(), key=lambda item: item[1].begin)))
    text = packed._json(header).encode()
    text = text.ljust(-(-(len(text) + 8) // 64) * 64 - 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data(raw[begin:]))


def metadata(**texts: str) -> Change:
    return lambda header, tables: header["__metadata__"].update(texts)


def config(**values: object) -> Change:
    return lambda header, tables: tables["config"].update(values)


def tensor(name: str, **values: object) -> Change:
    return lambda header, tables: header[name].update(values)


FORGED: dict[str, tuple[Change, str]] = {
    "D2 newer version": (metadata(format_version="2"), "format 2"),
    "D2 other generation": (metadata(generation="chatglm2"), "chatglm2"),
    "D2 unknown format": (lambda header, tables: tables["formats"].update(embedding="q2_k"), "q2_k"),
    "D2 format as path": (lambda header, tables: tables["formats"].update(embedding="../os"), "../os"),
    "D2 format missing": (lambda header, tables: tables["formats"].pop("embedding"), "embedding"),
    "D4 checksum missing": (lambda header, tables: tables["checksums"].pop("tokenizer"), "tokenizer"),
    "D4 checksum a number": (lambda header, tables: tables["checksums"].update(tokenizer=5), "checksums"),
    "D6 dtype": (tensor("embedding.codes", dtype="I8"), "embedding.codes"),
    "D6 foreign dtype": (tensor("embedding.scales", dtype="BF16"), "BF16"),
    **{
        f"D7 {field} {value!r}": (config(**{field: value}), field)
        for field, values in {
            "vocabulary": (0, "x", 10**18, True, 1.5, None),
            "layers": (0, 1025),
            "heads": (0, 1025),
            "bos": (-1, 10**9),
            "epsilon": ("x", -1),
            "tied": (1, "x"),
            "image_tokens": (-1, 10**9),
            "rotary_parts": (0, 3),
        }.items()
        for value in values
    },
    "D7 one layer more": (config(layers=3), "layers.2"),
    "D7 twice the channels": (config(channels=64), "embedding.codes"),
    "D7 not tied": (config(tied=False), "lm_head"),
    "D7 unknown field": (config(foo=1), "config"),
}


@pytest.mark.parametrize("command", ["verify", "chat"])
@pytest.mark.parametrize("row", FORGED)
def test_forged_packed_file_is_refused(row: str, command: str, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    change, word = FORGED[row]
    rewrite(Path("earlier.safetensors"), change)
    options = ["--prompt", "x"] if command == "chat" else []
    line = refused(capfd, command, "earlier.safetensors", *options, code=3)
    assert line.startswith("glmcpu: error: earlier.safetensors")
    assert word in line


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["embedding.scales", "layers.0.qkv.bias"])
def test_verify_finds_numbers_that_are_none(
    number: float, name: str, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    dtype = "<f2" if name.endswith("scales") else "<f4"
    bad = np.array([number], dtype).tobytes()
    raw = Path("earlier.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    begin, end = header[name]["data_offsets"]
    crc = zlib.crc32(bad * ((end - begin) // len(bad)))
    rewrite(
        Path("earlier.safetensors"),
        lambda header, tables: tables["checksums"].update({name: f"{crc:08x}"}),
        lambda data: data[:begin] + bad * ((end - begin) // len(bad)) + data[end:],
    )
    line = refused(capfd, "verify", "earlier.safetensors", code=3)
    assert f"'{name}' holds NaN or infinity" in line


DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda raw: b"",
    "cut in the header": lambda raw: raw[:100],
    "cut in the data": lambda raw: raw[: len(raw) // 2],
    "last byte missing": lambda raw: raw[:-1],
    "a byte more": lambda raw: raw + b"x",
    "a bit of the header": lambda raw: raw[:900] + bytes([raw[900] ^ 1]) + raw[901:],
    "pointer of Git LFS": lambda raw: POINTER,
    "web page": lambda raw: b"<!doctype html><html>not found",
}


@pytest.mark.parametrize("command", ["info", "verify", "chat"])
@pytest.mark.parametrize("row", DAMAGED)
def test_damaged_packed_file_is_refused(row: str, command: str, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = Path("earlier.safetensors")
    path.write_bytes(DAMAGED[row](path.read_bytes()))
    options = ["--prompt", "x"] if command == "chat" else []
    assert "earlier.safetensors: " in refused(capfd, command, path, *options, code=3)


def test_bit_of_the_data_is_found_by_verify(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = Path("earlier.safetensors")
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    assert "is damaged: checksum" in refused(capfd, "verify", path, code=3)


LONG = "a" * 5000
REQUESTS: dict[str, tuple[list[str], int, str]] = {
    # arguments, exit code, words
    "folder as model": (["chat", "./checkpoint", "-p", "x"], 3, "glmcpu convert FOLDER"),
    "weights as model": (["chat", "checkpoint/pytorch_model.bin", "-p", "x"], 3, "not a safetensors file"),
    "no such path": (["info", "a/b/c.safetensors"], 3, "a/b/c.safetensors: no such file"),
    "name too long": (["info", LONG], 3, "no model 'aaa"),
    "path too long": (["info", f"/{LONG}"], 3, "no such file"),
    "path too deep": (["info", "a/" * 2000], 3, "no such file"),
    "empty name": (["info", ""], 3, "no model ''"),
    "rm of a path": (["rm", "./earlier.safetensors", "--yes"], 3, "the only place rm works in"),
    "rm of a pattern": (["rm", "*", "--yes"], 3, "no model '*'"),
    "source too long": (["convert", LONG], 4, "File name too long"),
    "source is the config": (["convert", "checkpoint/config.json"], 3, "give the folder"),
    "source is the weights": (["convert", "checkpoint/pytorch_model.bin"], 3, "give the folder"),
    "source is packed": (["convert", "earlier.safetensors"], 3, "rounded already"),
    "source is nowhere": (["convert", "nowhere"], 3, "nowhere: no such folder"),
    "source of an unknown user": (["convert", "~nobody-of-this-name/x"], 2, "no such home folder"),
    "revision of a folder": (["convert", "checkpoint", "--revision", "x"], 2, "--revision x"),
    "target is a folder": (["convert", "checkpoint", "."], 2, "is a folder"),
    "target is a folder to be": (["convert", "checkpoint", "new/"], 2, "no file's name"),
    "target is empty": (["convert", "checkpoint", ""], 2, "no file's name"),
    "target is the config": (["convert", "checkpoint", "checkpoint/config.json"], 2, "not a packed model"),
    "target is the weights": (["convert", "checkpoint", "checkpoint/pytorch_model.bin"], 2, "own weights"),
    "target becomes the weights": (["convert", "checkpoint", "checkpoint/model.safetensors"], 2, "own weights"),
    "target under a file": (["convert", "checkpoint", "earlier.safetensors/new"], 4, "cannot be"),
    "target too long": (["convert", "checkpoint", LONG], 4, "File name too long"),
    "tokenizer is nowhere": (["convert", "checkpoint", "--tokenizer", "none"], 3, "none: no such file"),
    "tokenizer is the weights": (
        ["convert", "checkpoint", "--tokenizer", "checkpoint/pytorch_model.bin"],
        3,
        "not a sentencepiece model",
    ),
}


@pytest.mark.parametrize("row", REQUESTS)
def test_mistaken_request_is_refused(row: str, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments, code, words = REQUESTS[row]
    assert words in refused(capfd, *arguments, code=code)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no devices in the file system")
@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero", "./pipe"])
@pytest.mark.parametrize("command", ["info", "verify", "convert"])
def test_device_and_pipe_are_refused_at_once(
    command: str, path: str, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo("pipe")
    arguments, code = ([command, path], 3) if command != "convert" else ([command, "checkpoint", path], 2)
    assert f"{Path(path)}: " in refused(capfd, *arguments, code=code)


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names are Unicode there")
def test_names_that_are_no_text_work_and_are_escaped(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    odd = os.fsdecode(b"m\xff \n%{}\xe6\xa8\xa1")
    Path("checkpoint").rename(odd)
    assert cli.main(["convert", odd, f"{odd}.safetensors"]) == 0
    assert cli.main(["info", f"{odd}.safetensors"]) == 0
    capfd.readouterr()
    (Path(odd) / "pytorch_model.bin").write_bytes(b"")
    assert r"m\udcff \n%{}模/pytorch_model.bin: is empty" in refused(capfd, "convert", odd, code=3)
