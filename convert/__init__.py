"""From a checkpoint to a packed model: `glmcpu.convert.convert`.

    folder or hub name -> checkpoint (readers without torch) -> official names and shapes checked -> packed file
    packed model in f16 or f32 -> a smaller one
    and with a text to calibrate on, between reading and writing: each matrix rounded by its inputs (calibrate.py)
    and with an adapter, while reading: LoRA is taken up into the weights (merge.py)

What is checked before the first byte is written: that the files are whole and of one revision, that every tensor the
config demands is there in the right shape, that the disk has room.
"""

import contextlib
import hashlib
import json
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from glmcpu import __version__, files, formats, limits, packed, store, texts
from glmcpu.errors import DataError, Notice, UsageError, printable, shown
from glmcpu.model import open_tokenizer

from . import calibrate as calibration
from . import chatglm, merge, mixed, work_folder, writer
from .calibrate import LEAST_TOKENS
from .chatglm import Source
from .checkpoint import LAYOUTS, open_checkpoint
from .digests import digests_of, sha256
from .layer_by_layer import Text, multiplied
from .origin import Origin
from .packed_source import EXACT, open_packed

CALIBRATION_TOKENS = 8192
INCLUDED = "included"  # the text that comes with glmcpu

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
    bits: float | None = None,
    calibrate: str | os.PathLike[str] | None = None,
    calibration_tokens: int = CALIBRATION_TOKENS,
    adapter: str | os.PathLike[str] | None = None,
    lora_alpha: float | None = None,
) -> Path:
    """Converts a checkpoint into one packed file and returns its path.

    source       a folder, the name of a model on the hub ("THUDM/chatglm-6b"; `revision` and `offline` are for it), or
                 a packed model in f16 or f32: its name, or FILE.safetensors
    destination  a file; default: NAME-WEIGHTS.safetensors in the models folder. An earlier packed model is replaced
    weights      a format, one of glmcpu.formats.names()
    tokenizer    ice_text.model, when the source has none; without one the model speaks ids only
    progress     progress(stage, bytes done, bytes in all); the stages "calibrating .." count multiplications
    bits         in place of `weights`: so many bits a weight at most, each matrix in the format its errors on a text
                 allow (mixed.py)
    calibrate    a text (texts.py), or "included" for the one that comes with glmcpu, to round the weights by, for
                 formats with scales of groups; of it the sequences that fit into `calibration_tokens`. Interrupted,
                 the same call goes on with the next layer
    adapter      a folder or file with LoRA, to be part of the weights; then the default name is
                 NAME-ADAPTER-WEIGHTS.safetensors
    lora_alpha   for LoRA that does not say its alpha, or instead of what it says

    An official int8 or int4 checkpoint keeps its codes and scales when `weights` is the same number of bits;
    calibration takes the weights they stand for, and so does an adapter. Raises UsageError, DataError, MachineError or
    NetworkError; what was at `destination` before is then untouched.
    """
    formats.load(weights)
    merge.check(adapter, lora_alpha)
    if bits is not None:
        mixed.check(bits)
        weights = f"{bits:g}bits"
    if calibrate is not None or bits is not None:
        _check_calibration(None if bits is not None else weights, calibration_tokens)
    report = progress or (lambda stage, done, total: None)
    path, name, commit, hashes = _locate(os.fspath(source), revision, offline, report)
    if adapter is not None:
        name = f"{name}-{merge.label(adapter)}"
    target = store.home() / f"{name}-{weights}{store.SUFFIX}" if destination is None else _target(destination)
    with _opened(path, commit) as origin:
        _check_target(target, path)
        for note in origin.notes:
            warnings.warn(f"{origin.name}: {note}", Notice, stacklevel=2)
        if adapter is not None:
            origin = merge.with_adapter(origin, adapter, lora_alpha)
        data = _tokenizer(origin, tokenizer)
        text = None
        if calibrate is not None or bits is not None:
            text, about = _text(origin, data, calibrate or INCLUDED, calibration_tokens)
        if bits is not None and text is not None:
            sizes = {name: source.O * source.I for name, source in origin.sources.items()}
            chosen = _formats(origin, mixed.CANDIDATES[-1]) | mixed.choose(
                mixed.measure(origin, text, report), sizes, bits
            )
        else:
            chosen = _formats(origin, weights)
        contents = packed.Contents(
            generation=chatglm.GENERATION,
            weights=weights,
            config=asdict(origin.config),
            formats=chosen,
            source={**origin.about, "calibration": about} if text else origin.about,
            checksums={},
        )
        job = writer.Job(origin.tensors, origin.sources, origin.vectors, chosen, data, contents, origin.name)
        if calibrate is None or text is None:
            _write(job, target, hashes, report)
        else:
            _write_calibrated(job, origin, text, target, hashes, report)
    return target


def _write(job: writer.Job, target: Path, hashes: dict[str, str | None], report: Progress) -> None:
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:  # hashes the files while they are converted and in the page cache
        hashing = pool.submit(digests_of, job.tensors.files, hashes, stop)
        try:
            writer.write(job, target, hashing.result, report)
        finally:
            stop.set()


def _check_calibration(weights: str | None, tokens: int) -> None:
    if weights is not None and not formats.is_grouped(weights):
        able = " ".join(name for name in formats.names() if formats.is_grouped(name))
        raise UsageError(f"--calibrate is for weights with scales of groups ({able}), and {weights} has none; take one")
    if not isinstance(tokens, int) or tokens < LEAST_TOKENS:
        raise UsageError(f"--calibration-tokens {printable(tokens)}: a whole number from {LEAST_TOKENS} on is needed")


def _text(
    origin: Origin, data: bytes | None, given: str | os.PathLike[str], tokens: int
) -> tuple[Text, dict[str, str | int]]:
    """The text to calibrate with, and what the packed header says of it."""
    config = origin.config
    path = texts.included() if given == INCLUDED else Path(given)
    if data is None:
        raise UsageError(f"{origin.name}: has no tokenizer, and calibration reads text; name one with --tokenizer FILE")
    text = calibration.read_text(path, open_tokenizer(data, config, origin.name), config, tokens)
    if text.tokens < min(config.feed_forward, tokens // 2):
        message = f"{shown(path)}: {text.tokens:,} tokens to calibrate with; some thousands more would serve better"
        warnings.warn(message, Notice, stacklevel=3)
    calibration.require_memory(config, text.tokens)
    _, digest = sha256(path)
    return text, {"file": printable(path.name), "sha256": digest, "tokens": text.tokens}


def _write_calibrated(
    job: writer.Job, origin: Origin, text: Text, target: Path, hashes: dict[str, str | None], report: Progress
) -> None:
    """Rounds by what a text gives each matrix to multiply, layer by layer on disk, and writes the packed file."""
    config, chosen = origin.config, job.formats
    made_of = digests_of(origin.tensors.files, hashes)
    adapters = origin.about.get("adapters")
    everything = [__version__, made_of, adapters, job.contents.config, dict(chosen), calibration.digest(text)]
    key = hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()
    residual = 2 * text.tokens, config.channels
    with work_folder.opened(target, key, config.layers, residual) as folder:
        calibration.run(origin, chosen, text, folder, report)
        ready = {
            name: partial(folder.arrays, name, chosen[name], origin.sources[name].O, origin.sources[name].I)
            for name in multiplied(config)
        }
        writer.write(replace(job, ready=ready), target, lambda: made_of, report)


@contextlib.contextmanager
def _opened(path: Path, commit: str) -> Iterator[Origin]:
    """The model at `path`, its tensors compared with what the config demands; raises DataError and MachineError."""
    if path.suffix == store.SUFFIX and not path.is_dir():
        with open_packed(path) as origin:
            yield origin
        return
    with open_checkpoint(path) as checkpoint:
        config_name = shown(path / "config.json")
        config = chatglm.read_config(checkpoint.config, checkpoint.tokenizer_config, config_name)
        sources = chatglm.sources(checkpoint, config, shown(path))
        name = checkpoint.config.get("_name_or_path")
        yield Origin(
            name=shown(path),
            tensors=checkpoint,
            config=config,
            sources=sources,
            dtypes={ours: checkpoint.tensors[source.weight].dtype for ours, source in sources.items()},
            vectors=chatglm.vectors(config),
            tokenizer=checkpoint.tokenizer,
            notes=checkpoint.notes,
            about={"name": name if isinstance(name, str) else "", "revision": commit},
        )


def _locate(
    source: str, revision: str | None, offline: bool, report: Progress
) -> tuple[Path, str, str, dict[str, str | None]]:
    """The folder or file, the model's name, and from the hub the commit and the SHA-256 of files it has vouched for."""
    path = files.expanded(source)
    if not files.exists(path) and (model := store.named(source)):
        source, path = model.name, model
    packed_name = source.endswith(store.SUFFIX)
    if files.exists(path) or packed_name or not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        if revision is not None:
            raise UsageError(
                f"--revision {printable(revision)} is for models on the hub, and {printable(source)} is on this machine"
            )
        if packed_name and not path.is_dir():
            path = store.find(path)
            return path, re.sub(f"-({'|'.join(EXACT)})$", "", path.name.removesuffix(store.SUFFIX)), "", {}
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


def _check_target(target: Path, source: Path) -> None:
    """Refuses to write over anything but an earlier packed model, and over the source or into it."""
    name = shown(target)
    if target.name in LAYOUTS and target.parent.resolve() == source.resolve():
        raise UsageError(f"{name}: would be taken for the checkpoint's own weights; choose another name or folder")
    if not files.exists(target):
        return
    if target.is_dir():
        raise UsageError(f"{name}: is a folder; name the file to write")
    if target.samefile(source):
        raise UsageError(f"{name}: is the model to be converted; name another file to write")
    try:
        packed.PackedFile(target)
    except DataError as error:
        raise UsageError(f"{name}: exists and is not a packed model; remove it or name another file") from error


def _formats(origin: Origin, weights: str) -> dict[str, str]:
    """Matrix -> format. Repacking a quantized checkpoint into its own bits keeps what it holds in floats as it is."""
    bits = max(source.bits for source in origin.sources.values())
    lossless = {8: "int8", 4: "int4"}.get(bits) == weights

    def choose(ours: str, source: Source) -> str:
        if not lossless or source.bits:
            return weights
        return "f16" if origin.dtypes[ours] == "f16" else "f32"

    return {ours: choose(ours, source) for ours, source in origin.sources.items()}


def _tokenizer(origin: Origin, given: str | os.PathLike[str] | None) -> bytes | None:
    """The tokenizer's bytes after a trial opening; None when there is none."""
    found = origin.tokenizer if given is None else Path(given)
    if found is None:
        return None
    if isinstance(found, bytes):
        data, name = found, f"{origin.name}: tokenizer"
    else:
        data, name = files.read_bytes(found, limits.TOKENIZER_BYTES), str(found)
    open_tokenizer(data, origin.config, name)
    return data
