"""A packed model of a published architecture with random weights: to measure a machine before 13 GB are downloaded.

It is a real packed file, so opening, mapping and reading it cost what they cost with the true weights. Of each width of
matrix a slab of some rows is drawn from N(0, 0.02) and quantized as a checkpoint's would be; the slab then repeats down
the matrix, and in every layer. So gigabytes are made at the speed of the disk. There is no tokenizer.
"""

import contextlib
import gc
import os
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from glmcpu import files, formats, models, packed, pages, store
from glmcpu.models import Generation
from glmcpu.packed import ALIGNMENT, Contents
from glmcpu.safetensors_header import Entry

Progress = Callable[[str, int, int], None]

PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "chatglm-6b": (
        "chatglm",
        {
            "vocabulary": 130528,
            "channels": 4096,
            "layers": 28,
            "heads": 32,
            "feed_forward": 16384,
            "epsilon": 1e-5,
            "trained_context": 2048,
            "rotary_parts": 2,
            "bos": 130004,
            "eos": 130005,
            "mask": 130000,
            "gmask": 130001,
            "pad": 3,
            "image_tokens": 0,
            "tied": True,
        },
    ),
}
"""Name -> generation and hyperparameters (THUDM/chatglm-6b, config.json)."""

_SLAB = 1 << 22  # weights
_SIGMA = 0.02


@contextlib.contextmanager
def temporary_model(name: str, weights: str, progress: Progress) -> Iterator[tuple[Path, Callable[[], None]]]:
    """The file of a published architecture in a weight format, in the models folder until the block ends.

    Yields (path, forget): forget() may be called when the file is mapped, and removes it where the system keeps what
    is mapped, so that nothing is left even of a run that is killed. progress(stage, bytes done, bytes in all).
    Raises MachineError when the disk has no room for it.
    """
    generation, config = PUBLISHED[name]
    target = store.home() / f".bench-{name}-{weights}{store.SUFFIX}"

    def forget() -> None:
        if os.name == "posix":
            files.remove(target)

    write(target, generation, models.load(generation).Config(**config), weights, progress)
    try:
        yield target, forget
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # they hold the model, and Windows keeps a file that is mapped
        raise
    finally:
        gc.collect()
        if files.exists(target):
            files.remove(target)


def write(target: Path, generation: str, config: Any, weights: str, progress: Progress) -> None:
    """Writes a random packed file of a generation's config; raises MachineError when the disk has no room for it."""
    kind = models.load(generation)
    sources = _sources(kind, config, weights)
    tensors = _places(sources)
    contents = Contents(
        generation=generation,
        weights=weights,
        config=asdict(config),
        formats=dict.fromkeys(kind.matrices(config), weights),
        source={"name": "random weights"},
        checksums=dict.fromkeys(tensors, "00000000"),
    )
    data_begin = len(packed.header_bytes(contents, tensors))
    data_bytes = max(entry.end for entry in tensors.values())
    with files.atomic_write(target) as file:
        files.require_space(target.parent, data_begin + data_bytes, f"random weights in {weights}")
        file.seek(data_begin)
        checksums: dict[str, str] = {}
        known: dict[tuple[int, int], int] = {}  # reading gigabytes for their checksums would take as long as writing
        for name, entry in tensors.items():
            slab, size_bytes = sources[name].slab, entry.end - entry.begin
            crc = _repeat(file, slab, size_bytes, known.get((id(slab), size_bytes)))
            known[id(slab), size_bytes] = crc
            checksums[name] = f"{crc:08x}"
            progress("writing random weights", entry.end, data_bytes)
        file.seek(0)
        file.write(packed.header_bytes(replace(contents, checksums=checksums), tensors))
        pages.read_anew(file)


class _Source(NamedTuple):
    """A tensor, and the bytes it repeats."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    slab: NDArray[np.uint8]


def _sources(kind: Generation, config: Any, weights: str) -> dict[str, _Source]:
    """Every tensor of the file; matrices of one width share their slabs."""
    matrices, form = kind.matrices(config), formats.load(weights)
    heights: dict[int, int] = {}
    for O, I in matrices.values():
        heights[I] = max(O, heights.get(I, 0))
    slabs = {I: _packed_slab(form, O, I) for I, O in heights.items()}
    found = {}
    for name, (O, I) in matrices.items():
        for key, (shape, dtype) in form.layout(O, I).items():
            found[f"{name}.{key}"] = _Source(shape, np.dtype(dtype), slabs[I][key])
    for name, n in kind.vectors(config).items():
        values = np.full(n, 1 if name.endswith(".scale") else 0, np.float32)
        found[name] = _Source((n,), values.dtype, values.view(np.uint8))
    return found


def _packed_slab(form: formats.Format, O: int, I: int) -> dict[str, NDArray[np.uint8]]:
    """Up to O rows of I random weights in a format: array name -> bytes. Arrays begin with blocks of 16 rows."""
    rows = 16 * max(1, min(-(-O // 16), _SLAB // I // 16))
    noise = np.random.default_rng(I).standard_normal((rows, I), np.float32) * np.float32(_SIGMA)
    return {key: np.ascontiguousarray(a).reshape(-1).view(np.uint8) for key, a in form.pack(noise).items()}


def _places(sources: Mapping[str, _Source]) -> dict[str, Entry]:
    """Where each tensor lies. Sizes that are multiples of 64 come first, then falling item sizes: all are aligned."""
    sized = [(name, s, packed.count(s.shape) * s.dtype.itemsize) for name, s in sources.items()]
    sized.sort(key=lambda item: (item[2] % ALIGNMENT != 0, -item[1].dtype.itemsize if item[2] % ALIGNMENT else 0))
    places, at = {}, 0
    for name, source, size_bytes in sized:
        places[name] = Entry(packed.dtype_name(source.dtype), source.shape, at, at + size_bytes)
        at += size_bytes
    return places


def _repeat(file: BinaryIO, slab: NDArray[np.uint8], size_bytes: int, crc: int | None) -> int:
    """Writes `slab` again and again, size_bytes in all; returns their CRC-32, `crc` where it is known."""
    found = 0
    for begin in range(0, size_bytes, len(slab)):
        part = slab[: size_bytes - begin].data
        file.write(part)
        if crc is None:
            found = zlib.crc32(part, found)
    return found if crc is None else crc
