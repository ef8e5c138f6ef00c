"""Checkpoints as strangers make them: each row spoils a good one (tiny_checkpoint.py) in one way.

A row is (what to do to the folder, words that the refusal must hold). The names begin with the group of faults: torch
archives and pickles, index and shards, safetensors, config, tokenizer.
"""

import dataclasses
import io
import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tiny_checkpoint import C, F, official_config, official_tensors
from tiny_tokenizer import ROWS, message, piece, tiny_model
from torch_files import (
    View,
    safetensors_bytes,
    save_index,
    save_safetensors,
    save_torch,
    save_torch_legacy,
    state_dict_pickle,
    views_of,
    write_torch_zip,
)

Spoil = Callable[[Path], object]
Row = tuple[Spoil, tuple[str, ...]]

TENSORS = official_tensors()
EMBEDDING, NORM = "transformer.word_embeddings.weight", "transformer.layers.0.input_layernorm.weight"
SHARDS = [f"pytorch_model-{n:05d}-of-00003.bin" for n in (1, 2, 3)]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 1740651802\n"
CANARY = "glmcpu-canary"  # what a hostile pickle would make in the working folder


def content(name: str, data: bytes) -> Spoil:
    """The file `name` holds these bytes instead."""
    return lambda folder: (folder / name).write_bytes(data)


def weights(data: bytes) -> Spoil:
    return content("pytorch_model.bin", data)


def edited(change: Callable[[bytes], bytes]) -> Spoil:
    """The good archive, changed."""
    return lambda folder: weights(change((folder / "pytorch_model.bin").read_bytes()))(folder)


def pickled(data: bytes) -> Spoil:
    """An archive around this pickle."""
    out = io.BytesIO()
    write_torch_zip(out, "m", data, {})
    return weights(out.getvalue())


def calling(name: str) -> Spoil:
    text = f"touch {CANARY}".encode()
    return pickled(b"\x80\x02c" + name.encode() + b"\nX" + struct.pack("<I", len(text)) + text + b"\x85R.")


def tensors(**changes: Any) -> Spoil:
    """The good tensors with some replaced, added, or (None) left out; "." in names as "__"."""
    table = TENSORS | {name.replace("__", "."): value for name, value in changes.items()}
    kept = {name: value for name, value in table.items() if value is not None}
    return lambda folder: save_torch(folder / "pytorch_model.bin", kept)


def described(**changes: Any) -> Spoil:
    """An archive whose pickle describes the embedding otherwise."""
    views, bases = views_of(TENSORS)
    views = views | {EMBEDDING: dataclasses.replace(views[EMBEDDING], **changes)}
    return lambda folder: _archive(folder, views, bases)


def _archive(folder: Path, views: dict[str, View], bases: dict[str, Any], byteorder: bytes = b"little") -> None:
    with (folder / "pytorch_model.bin").open("wb") as file:
        storages = {key: (base.nbytes, [base.tobytes()]) for key, base in bases.items()}
        write_torch_zip(file, "m", state_dict_pickle(views), storages, byteorder=byteorder)


def plain_zip(*members: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> Spoil:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return weights(out.getvalue())


def embedding(value: float, dtype: str = "f2") -> Spoil:
    table = TENSORS[EMBEDDING].astype(dtype)
    table[3, 4] = value
    return tensors(**{EMBEDDING: table})


TORCH: dict[str, Row] = {
    "A1 pointer of Git LFS": (weights(POINTER), ("Git LFS pointer", "1,740,651,802", "git lfs pull")),
    "A2 web page": (weights(b"<!DOCTYPE html><html>404"), ("HTML page", "download")),
    "A2 message": (weights(b'{"error": "not found"}'), ("JSON message", "download")),
    "A3 empty": (weights(b""), ("is empty", "download")),
    "A4 cut in the first header": (edited(lambda raw: raw[:20]), ("truncated", "has 20")),
    "A4 cut in the data": (edited(lambda raw: raw[: len(raw) // 2]), ("truncated", "expected at least 100,480")),
    "A4 cut in the directory": (edited(lambda raw: raw[:-3000]), ("truncated",)),
    "A4 last byte missing": (edited(lambda raw: raw[:-1]), ("truncated",)),
    "A5 legacy file cut": (
        lambda folder: (
            save_torch_legacy(folder / "pytorch_model.bin", TENSORS),
            edited(lambda raw: raw[:-9])(folder),
        ),
        ("truncated",),
    ),
    "A6 7z": (weights(b"7z\xbc\xaf\x27\x1c" + bytes(99)), ("7z",)),
    "A6 zip of something else": (plain_zip(("a.txt", b"x")), ("no data.pkl",)),
    "A7 two roots": (plain_zip(("a/data.pkl", b"x"), ("b/data.pkl", b"x")), ("ambiguous",)),
    "A9 compressed": (
        plain_zip(("a/data.pkl", bytes(50_000_000)), method=zipfile.ZIP_DEFLATED),
        ("compressed members are not accepted",),
    ),
    "A14 member outside": (plain_zip(("../../x/data.pkl", b"x")), ("../../x/data.pkl", "refused")),
    "A15 bytes behind": (edited(lambda raw: raw + b"junk"), ("4 extra bytes",)),
    "A16 flipped bit": (
        edited(lambda raw: raw[:9000] + bytes([raw[9000] ^ 1]) + raw[9001:]),
        ("checksum mismatch", "download"),
    ),
    "A17 os.system": (calling("os\nsystem"), ("os.system",)),
    "A17 eval": (calling("builtins\neval"), ("builtins.eval",)),
    "A17 torch.load": (calling("torch\nload"), ("torch.load",)),
    "A17 resolve_name": (calling("pkgutil\nresolve_name"), ("pkgutil.resolve_name",)),
    "A18 protocol 4": (pickled(b"\x80\x04}."), ("protocol 4",)),
    "A19 memo of 4 G": (pickled(b"\x80\x02]r\xff\xff\xff\xff."), ("holds a list",)),
    "A19 text of 4 GB": (pickled(b"\x80\x02X\xff\xff\xff\xff."), ("4,294,967,295 bytes",)),
    "A20 marks": (pickled(b"\x80\x02" + b"(" * 1_000_000 + b"."), ("too deep",)),
    "A20 tuples": (pickled(b"\x80\x02)" + b"\x85" * 1_000_000 + b"."), ("too large",)),
    "A21 empty stack": (pickled(b"\x80\x02\x85."), ("empty stack",)),
    "A22 set on a list": (pickled(b"\x80\x02]K\1K\2s."), ("list",)),
    "A23 storage outside": (described(key="../data.pkl"), ("../data.pkl", "missing")),
    "A24 storage of 2**62": (described(elements=1 << 62), ("9,223,372,036,854,775,808",)),
    "A25 offset behind the end": (described(offset=1 << 62), ("4,611,686,018,427,387,904",)),
    "A25 elements shown twice": (described(stride=(0, 1)), ("twice",)),
    "A27 unknown type": (described(storage_type="QInt8Storage"), ("QInt8Storage",)),
    "A27 whole numbers": (tensors(**{EMBEDDING: np.zeros((ROWS, C), "i8")}), (EMBEDDING, "i64")),
    "A28 big-endian": (lambda folder: _archive(folder, *views_of(TENSORS), byteorder=b"big"), ("little-endian",)),
    "A29 tensor missing": (tensors(**{NORM: None}), (NORM, "missing")),
    "A29 tensor too many": (tensors(foo=np.zeros(3, "f4")), ("'foo'", "another model")),
    "A29 wrong shape": (tensors(**{NORM: np.ones(F, "f4")}), (NORM, "[64]", "[32]")),
    "A29 unprintable name": (tensors(**{"a\x1b[2J": np.zeros(3, "f4")}), (r"a\x1b[2J",)),
    "A29 name of a megabyte": (tensors(**{"a" * (1 << 20): np.zeros(3, "f4")}), ("256 characters",)),
    "A30 NaN": (embedding(np.nan), (EMBEDDING, "nan", "row 3, column 4")),
    "A30 infinity": (embedding(np.inf), (EMBEDDING, "inf", "row 3, column 4")),
    "A30 too large for half": (embedding(1e6, "f4"), (EMBEDDING, "65,504", "--weights f32")),
    "A30 NaN in a norm": (tensors(**{NORM: np.full(C, np.nan, "f4")}), (NORM, "nan")),
}


def shards(folder: Path) -> dict[str, str]:
    """Three files and their index in place of the one; returns the index's table."""
    (folder / "pytorch_model.bin").unlink()
    table = {name: SHARDS[3 * n // len(TENSORS)] for n, name in enumerate(TENSORS)}
    for shard in SHARDS:
        save_torch(folder / shard, {name: TENSORS[name] for name in TENSORS if table[name] == shard})
    save_index(folder / "pytorch_model.bin.index.json", table)
    return table


def indexed(**more: object) -> Spoil:
    return lambda folder: save_index(folder / "pytorch_model.bin.index.json", shards(folder) | more)  # type: ignore[arg-type]


def index(data: bytes) -> Spoil:
    return lambda folder: (shards(folder), (folder / "pytorch_model.bin.index.json").write_bytes(data))


def second(put: Spoil) -> Spoil:
    """The second shard is something else."""
    return lambda folder: (shards(folder), (folder / SHARDS[1]).unlink(), put(folder / SHARDS[1]))


FILES: dict[str, Row] = {
    "A31 shard missing": (second(lambda path: None), (SHARDS[1], "shard 2 of 3", "2 are here")),
    "A31 tensor of no file": (indexed(ghost=SHARDS[0]), ("'ghost'", SHARDS[0])),
    "A31 file of no tensor": (indexed(ghost="none.bin"), ("none.bin", "missing")),
    "A31 file outside": (indexed(ghost="../../etc/passwd"), ("'../../etc/passwd'", "index.json")),
    "A31 pointer among shards": (second(lambda path: path.write_bytes(POINTER)), (SHARDS[1], "git lfs pull")),
    "A32 key twice": (index(b'{"weight_map": {"a": "b", "a": "c"}}'), ("duplicate key",)),
    "A32 a million entries": (index(b'{"weight_map": {' + b'"a": "b",' * 700_000 + b"}}"), ("500,000",)),
    "A32 too large": (index(b" " * (9 << 20)), ("8,388,608",)),
    "A32 NaN": (index(b'{"a": NaN}'), ("NaN",)),
    "A32 deep": (index(b'{"a":' * 100_000), ("32 levels",)),
    "A33 folder": (second(lambda path: path.mkdir()), (SHARDS[1], "not a regular file")),
    "C1 config missing": (lambda folder: (folder / "config.json").unlink(), ("config.json is missing",)),
    "C1 no weights": (lambda folder: (folder / "pytorch_model.bin").unlink(), ("no weights", "pytorch_model")),
}
if hasattr(os, "mkfifo"):
    FILES |= {
        "A33 pipe": (second(os.mkfifo), (SHARDS[1], "not a regular file")),
        "A33 device": (second(lambda path: path.symlink_to("/dev/zero")), (SHARDS[1], "not a regular file")),
        "A33 link to nothing": (second(lambda path: path.symlink_to("nowhere")), (SHARDS[1], "missing")),
    }


def safetensors(change: Callable[[dict[str, Any]], object] = lambda header: None, tail: bytes = b"") -> Spoil:
    """One safetensors file with a changed header."""

    def spoil(folder: Path) -> None:
        (folder / "pytorch_model.bin").unlink()
        path = folder / "model.safetensors"
        save_safetensors(path, TENSORS)
        raw = path.read_bytes()
        begin = 8 + int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8:begin])
        change(header)
        path.write_bytes(safetensors_bytes(header, raw[begin:]) + tail)

    return spoil


def starting(length: int) -> Spoil:
    """A header that states another length."""

    def spoil(folder: Path) -> None:
        safetensors()(folder)
        path = folder / "model.safetensors"
        path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])

    return spoil


def entry(**changes: Any) -> Spoil:
    return safetensors(lambda header: header[EMBEDDING].update(changes))


SAFETENSORS: dict[str, Row] = {
    "B1 header of 0": (starting(0), ("header of 0 bytes",)),
    "B1 header of 2**64-1": (starting((1 << 64) - 1), ("18,446,744,073,709,551,615",)),
    "B1 pointer": (lambda folder: (safetensors()(folder), content("model.safetensors", POINTER)(folder)), ("git lfs",)),
    "B4 hole": (entry(data_offsets=[1, 65537]), ("begins at data byte 1",)),
    "B4 float offsets": (entry(data_offsets=[0.0, 65536.0]), ("two integers",)),
    "B5 bytes behind": (safetensors(tail=b"PK"), ("2 extra bytes",)),
    "B6 shape that wraps": (entry(shape=[4194305, 4194305, 211106198978564]), (EMBEDDING, "takes 7,427,642,596")),
    "B7 unknown dtype": (entry(dtype="f16"), ("unknown dtype 'f16'",)),
    "B8 metadata of numbers": (safetensors(lambda header: header.update(__metadata__={"a": 1})), ("__metadata__",)),
    "B9 five thousand tensors": (
        safetensors(lambda header: header.update({str(n): header[EMBEDDING] for n in range(5000)})),
        ("4,096",),
    ),
    "B10 unknown field": (entry(x=1), ("expected exactly dtype",)),
    "B11 right-to-left name": (safetensors(lambda header: header.update({"a\u202eb": 1})), (r"a\u202eb",)),
}


def config(**changes: object) -> Spoil:
    return lambda folder: (folder / "config.json").write_text(json.dumps(official_config() | changes))


CONFIG: dict[str, Row] = {
    "C1 not JSON": (content("config.json", b"hello"), ("config.json", "not valid JSON")),
    "C1 a list": (content("config.json", b"[]"), ("config.json", "list")),
    "C1 chatglm2": (config(model_type="chatglm2"), ("chatglm2 model", "first ChatGLM-6B")),
    "C1 kind of control characters": (config(model_type="\x1b]52;" * 99), (r"\x1b]52;",)),
    **{
        f"C2 {key} {value!r}": (config(**{key: value}), (key,))
        for key in ("vocab_size", "hidden_size", "num_layers", "num_attention_heads", "inner_hidden_size")
        for value in ("32", True, 1.5, None, -1, 0, 10**19)
    },
    "C2 thirty digits": (config(hidden_size=10**30), ("20 digits",)),
    "C2 epsilon": (config(layernorm_epsilon=1e308), ("layernorm_epsilon is 1e+308",)),
    "C2 heads": (config(num_attention_heads=3), ("3 heads", "32 channels")),
    "C2 special id": (config(vocab_size=10), ("bos_token_id", "between 0 and 9")),
    "C2 largest of all": (config(vocab_size=1 << 20, hidden_size=1 << 16, num_layers=1024), ("[1048576, 65536]",)),
    "C4 bits": (config(quantization_bit="8"), ("quantization_bit is '8'",)),
    "C4 no scales": (config(quantization_bit=8), ("f16", "demands i8")),
    "C9 mixed revisions": (content("tokenizer_config.json", b'{"num_image_tokens": 20000}'), ("20,000", "revision")),
}


def tokenizer(data: bytes) -> Spoil:
    return content("ice_text.model", data)


TOKENIZER: dict[str, Row] = {
    "C5 empty": (tokenizer(b""), ("ice_text.model", "empty")),
    "C5 pointer": (tokenizer(POINTER), ("Git LFS pointer",)),
    "C5 cut": (tokenizer(tiny_model()[:-7]), ("cut off",)),
    "C5 endless number": (tokenizer(b"\xff" * 11), ("a number without end",)),
    "C5 groups": (tokenizer(b"\x0b" * 1_000_000), ("wire type 3",)),
    "C6 a million pieces": (tokenizer(tiny_model() + piece("a", 0.0, 1) * 1_000_000), ("500,000 pieces",)),
    "C6 score NaN": (tokenizer(tiny_model() + piece("zz", float("nan"), 1)), ("not a finite number",)),
    "C7 other ids": (config(bos_token_id=5), ("bos", "different models")),
    "C7 another model's": (tokenizer(piece("<unk>", 0.0, 2) + piece("a", 0.0, 1)), ("no piece <pad>",)),
    "C8 character map": (tokenizer(tiny_model() + message(3, message(2, b"garbage" * 9))), ("character map",)),
    "C8 too large": (tokenizer(bytes(17 << 20)), ("16,777,216",)),
}

ROWS_OF_ALL: dict[str, Row] = TORCH | FILES | SAFETENSORS | CONFIG | TOKENIZER
