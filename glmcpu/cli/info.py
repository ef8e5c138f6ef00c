"""`glmcpu info`: a packed model and the memory it needs, or the machine, or the bounds on what is read."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from glmcpu.cli import terminal
from glmcpu.cli.options import context_option, debug_option
from glmcpu.errors import printable


@click.command(name="info")
@click.argument("file", required=False)
@context_option
@click.option("--limits", "show_limits", is_flag=True, help="Show every bound on what glmcpu reads.")
@debug_option
def command(file: str | None, context: int | None, show_limits: bool) -> None:
    """Describe a model, or this machine.

    FILE is a path or a name in the models folder; without it the machine is described.
    """
    from glmcpu import store

    if show_limits:
        rows = _limits()
    elif file is None:
        rows = _machine()
    else:
        rows = _model(store.find(file), context)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        terminal.write_line(f"{printable(name):{width}}  {printable(value, 400)}")


def _model(path: Path, context: int | None) -> list[tuple[str, str]]:
    from glmcpu.memory import available_bytes, megabytes
    from glmcpu.model import describe

    found = describe(path)
    context = context or found.config.trained_context
    needed, have = found.memory_bytes(context), available_bytes()
    verdict = "" if have is None else f", {megabytes(have)} available: {'enough' if have >= needed else 'NOT enough'}"
    return [
        ("file", str(path)),
        ("size", terminal.size(found.file_bytes)),
        ("generation", str(found.generation)),
        ("weights", f"{found.weights}, {found.bits_per_weight:.2f} bits per weight"),
        ("formats", _counts(list(found.formats.values()))),
        ("tokenizer", "inside" if found.has_tokenizer else "none: ids only"),
        (f"memory for {context:,} tokens", megabytes(needed) + verdict),
        *((f"config {key}", str(value)) for key, value in dataclasses.asdict(found.config).items()),
        *_source(found.source),
    ]


def _source(source: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where the weights came from, one row for each file; what a file says of itself may be anything."""
    rows = [(f"source {key}", str(value)) for key, value in sorted(source.items()) if value and key != "files"]
    files = source.get("files")
    if isinstance(files, Mapping):
        rows += [(f"source {name}", _text(facts)) for name, facts in files.items()]
    return rows


def _counts(names: list[str]) -> str:
    return ", ".join(f"{names.count(name)} x {name}" for name in sorted(set(names)))


def _machine() -> list[tuple[str, str]]:
    from glmcpu.kernels.machine import machine
    from glmcpu.memory import available_bytes, megabytes

    have = available_bytes()
    rows = [(name.replace("_", " "), _text(value)) for name, value in machine().items()]
    return [*rows, ("memory available", "unknown" if have is None else megabytes(have))]


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {fact}" for key, fact in value.items())
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _limits() -> list[tuple[str, str]]:
    from glmcpu import limits

    return [(name.lower(), f"{value:,}") for name, value in vars(limits).items() if name.isupper()]
