"""`glmcpu convert`: a checkpoint into one packed model file."""

import os
from pathlib import Path

import click

from glmcpu import formats
from glmcpu.cli import terminal
from glmcpu.cli.options import debug_option, threads_option, weight_format
from glmcpu.errors import UsageError, printable


@click.command(name="convert")
@click.argument("source")
@click.argument("destination", required=False)
@click.option(
    "--weights",
    "-w",
    callback=weight_format,
    default="int4_g32",
    show_default=True,
    metavar="FORMAT",
    help=f"How weights are stored: {', '.join(formats.names())}.",
)
@click.option("--revision", metavar="NAME", help="Branch, tag or commit on the hub.")
@click.option("--offline", is_flag=True, help="Use only what was downloaded before.")
@click.option("--tokenizer", metavar="FILE", help="An ice_text.model, when SOURCE has none.")
@threads_option
@debug_option
def command(
    source: str,
    destination: str | None,
    weights: str,
    revision: str | None,
    offline: bool,
    tokenizer: str | None,
    threads: int | None,
) -> None:
    """Make a packed model of a checkpoint.

    SOURCE is a folder or a name on the Hugging Face hub, such as THUDM/chatglm-6b. DESTINATION is the file to write,
    by default one in the models folder, where `glmcpu chat` finds it.
    """
    if not source:
        raise UsageError("SOURCE is empty; give a checkpoint's folder or a hub name such as THUDM/chatglm-6b")
    from glmcpu.convert import convert
    from glmcpu.kernels.threads import set_threads

    if threads is not None:
        set_threads(threads)
    with terminal.StatusLine() as line:
        path = convert(
            source,
            destination,
            weights=weights,
            progress=terminal.ByteProgress(line),
            tokenizer=tokenizer,
            revision=revision,
            offline=offline,
        )
    terminal.write_line(_result(path))


def _result(path: Path) -> str:
    """What was written and the next command."""
    from glmcpu import store
    from glmcpu.model import describe

    found = describe(path)
    known = path.parent == store.home() and path in store.models()
    name = path.name.removesuffix(store.SUFFIX) if known else os.fspath(path)
    next_step = f"next: glmcpu chat {_quoted(name)}"
    if not found.has_tokenizer:
        next_step = "it has no tokenizer and knows ids only; for text convert again with --tokenizer FILE"
    return (
        f"wrote {printable(path, 300)}: {terminal.size(found.file_bytes)}, {found.weights}, "
        f"{found.bits_per_weight:.2f} bits per weight; {next_step}"
    )


def _quoted(name: str) -> str:
    return f'"{printable(name, 300)}"' if " " in name else printable(name, 300)
