"""From a checkpoint to a packed model: `glmcpu.convert.convert`.

    folder or hub name -> checkpoint (readers without torch) -> official names and shapes checked -> packed file

What is checked before the first byte is written: that the files are whole and of one revision, that every tensor the
config demands is there in the right shape, that the disk has room.
"""

import hashlib
import os
import re
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from glmcpu import files, formats, limits, packed, store
from glmcpu.errors import DataError, MachineError, Notice, UsageError, printable, shown
from glmcpu.model import open_tokenizer
from glmcpu.models.chatglm import Config

from . import chatglm, writer
from .checkpoint import LAYOUTS, Checkpoint, open_checkpoint

Progress = Callable[[str, int, int], None]


def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str] | None = None,
    *,
    weights: str = "int4_g32",
    progress: Progress | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    offline: bool = False,
) -> Path:
    """Converts a checkpoint into one packed file and returns its path.

    source       a folder, or the name of a model on the hub ("THUDM/chatglm-6b"; `revision` and `offline` are for it)
    destination  a file; default: NAME-WEIGHTS.safetensors in the models folder. An earlier packed model is replaced
    weights      a format: f32 f16 int8 int4 int4_g32
    tokenizer    ice_text.model, when the folder has none; without one the model speaks ids only
    progress     progress(stage, bytes done, bytes in all)

    An official int8 or int4 checkpoint keeps its codes and scales when `weights` is the same number of bits. Raises
    UsageError, DataError, MachineError or NetworkError; what was at `destination` before is then untouched.
    """
    formats.load(weights)
    report = progress or (lambda stage, done, total: None)
    folder, name, commit, hashes = _locate(os.fspath(source), revision, offline, report)
    target = store.home() / f"{name}-{weights}{store.SUFFIX}" if destination is None else _target(destination)
    with open_checkpoint(folder) as checkpoint:
        _check_target(target, folder)
        for note in checkpoint.notes:
            warnings.warn(f"{shown(folder)}: {note}", Notice, stacklevel=2)
        config_name = shown(folder / "config.json")
        config = chatglm.read_config(checkpoint.config, checkpoint.tokenizer_config, config_name)
        sources = chatglm.sources(checkpoint, config, shown(folder))
        chosen = _formats(checkpoint, sources, weights)
        contents = packed.Contents(
            generation=chatglm.GENERATION,
            weights=weights,
            config=asdict(config),
            formats=chosen,
            source=_source(checkpoint, commit),
            checksums={},
        )
        data = _tokenizer(checkpoint, tokenizer, config)
        job = writer.Job(checkpoint, sources, chatglm.vectors(config), chosen, data, contents, shown(folder))
        stop = threading.Event()
        with ThreadPoolExecutor(1) as pool:  # hashes the files while they are converted and in the page cache
            hashing = pool.submit(_source_files, checkpoint.files, hashes, stop)
            try:
                writer.write(job, target, hashing.result, report)
            finally:
                stop.set()
    return target


def _locate(
    source: str, revision: str | None, offline: bool, report: Progress
) -> tuple[Path, str, str, dict[str, str | None]]:
    """The folder, the model's name, and from the hub the commit and the SHA-256 of files it has vouched for."""
    path = files.expanded(source)
    if files.exists(path) or not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        if revision is not None:
            raise UsageError(
                f"--revision {printable(revision)} is for models on the hub, and {printable(source)} is a folder"
            )
        return path, path.resolve().name, "", {}
    from . import hub

    fetched = hub.fetch(
        source,
        revision=revision,
        offline=offline,
        progress=lambda file, done, total: report(f"fetching {file}", done, total),
    )
    return fetched.folder, source.rpartition("/")[2], fetched.revision, fetched.files


def _target(destination: str | os.PathLike[str]) -> Path:
    text = os.fspath(destination)
    if not text or text.endswith(("/", os.sep)):
        raise UsageError(f"{shown(text)!r} is no file's name; name the file to write")
    return Path(text)


def _check_target(target: Path, folder: Path) -> None:
    """Refuses to write over anything but an earlier packed model, and to become part of the checkpoint."""
    name = shown(target)
    if target.name in LAYOUTS and target.parent.resolve() == folder.resolve():
        raise UsageError(f"{name}: would be taken for the checkpoint's own weights; choose another name or folder")
    if not files.exists(target):
        return
    if target.is_dir():
        raise UsageError(f"{name}: is a folder; name the file to write")
    try:
        packed.PackedFile(target)
    except DataError as error:
        raise UsageError(f"{name}: exists and is not a packed model; remove it or name another file") from error


def _formats(checkpoint: Checkpoint, sources: dict[str, chatglm.Source], weights: str) -> dict[str, str]:
    """Matrix -> format. Repacking a quantized checkpoint into its own bits keeps what it holds in floats as it is."""
    bits = max(source.bits for source in sources.values())
    lossless = {8: "int8", 4: "int4"}.get(bits) == weights

    def choose(source: chatglm.Source) -> str:
        if not lossless or source.bits:
            return weights
        return "f16" if checkpoint.tensors[source.weight].dtype == "f16" else "f32"

    return {ours: choose(source) for ours, source in sources.items()}


def _source(checkpoint: Checkpoint, commit: str) -> dict[str, Any]:
    name = checkpoint.config.get("_name_or_path")
    return {"name": name if isinstance(name, str) else "", "revision": commit}


def _tokenizer(checkpoint: Checkpoint, given: str | os.PathLike[str] | None, config: Config) -> bytes | None:
    """The tokenizer's bytes after a trial opening; None when there is none."""
    path = Path(given) if given is not None else checkpoint.tokenizer
    if path is None:
        return None
    data = files.read_bytes(path, limits.TOKENIZER_BYTES)
    open_tokenizer(data, config, str(path))
    return data


def _source_files(paths: tuple[Path, ...], known: dict[str, str | None], stop: threading.Event) -> dict[str, Any]:
    """File name -> size and SHA-256 of the source's files; digests the hub has vouched for are taken as known."""
    found = {}
    for path in paths:
        digest = known.get(path.name)
        size, computed = _sha256(path, stop) if digest is None else (path.stat().st_size, digest)
        found[path.name] = {"sha256": computed, "size": size}
    return found


def _sha256(path: Path, stop: threading.Event) -> tuple[int, str]:
    state, size, buffer = hashlib.sha256(), 0, bytearray(1 << 20)
    try:
        with files.open_regular(path) as file:
            while not stop.is_set() and (n := file.readinto(buffer)):
                state.update(memoryview(buffer)[:n])
                size += n
    except DataError as error:  # it was there when the checkpoint was opened
        raise MachineError(f"{error}: it was removed while it was converted; run again") from error
    return size, state.hexdigest()
