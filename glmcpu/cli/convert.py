"""`glmcpu convert`: a checkpoint into one packed model file."""

import os
import time
from pathlib import Path

import click

from glmcpu import formats
from glmcpu.cli import terminal
from glmcpu.cli.options import debug_option, threads_option, weight_format, whole_number
from glmcpu.errors import UsageError, printable

DEFAULT_WEIGHTS = "int4_g32"


@click.command(name="convert")
@click.argument("source")
@click.argument("destination", required=False)
@click.option(
    "--weights",
    "-w",
    callback=lambda context, option, value: value and weight_format(context, option, value),
    metavar="FORMAT",
    help=f"How weights are stored: {', '.join(formats.names())}.  [default: {DEFAULT_WEIGHTS}]",
)
@click.option(
    "--bits",
    type=float,
    metavar="X",
    help="In place of --weights: at most X bits a weight, each matrix in the format its errors allow.",
)
@click.option(
    "--calibrate",
    metavar="FILE",
    help="Round the weights by what they do to this text: JSONL of prompt and response, or plain text; "
    "`included` is a small one that comes with glmcpu.",
)
@click.option(
    "--calibration-tokens",
    type=str,
    callback=whole_number(128),
    metavar="N",
    help="How much of FILE to read.  [default: 8192]",
)
@click.option("--adapter", metavar="PATH", help="LoRA, a folder or file, to make part of the weights.")
@click.option(
    "--lora-alpha", type=float, metavar="X", help="Its alpha, where it has no adapter_config.json.  [default: 32]"
)
@click.option("--revision", metavar="NAME", help="Branch, tag or commit on the hub.")
@click.option("--offline", is_flag=True, help="Use only what was downloaded before.")
@click.option("--tokenizer", metavar="FILE", help="An ice_text.model, when SOURCE has none.")
@threads_option
@debug_option
def command(
    source: str,
    destination: str | None,
    weights: str | None,
    bits: float | None,
    calibrate: str | None,
    calibration_tokens: int | None,
    adapter: str | None,
    lora_alpha: float | None,
    revision: str | None,
    offline: bool,
    tokenizer: str | None,
    threads: int | None,
) -> None:
    """Make a packed model of a checkpoint.

    SOURCE is a folder or a name on the Hugging Face hub, such as THUDM/chatglm-6b, or a model packed in f16 or f32.
    DESTINATION is the file to write, by default one in the models folder, where `glmcpu chat` finds it.

    With --calibrate the errors of rounding are smaller and it takes an hour or more. Interrupt it as you like: the same
    command goes on where it was.
    """
    if not source:
        raise UsageError("SOURCE is empty; give a checkpoint's folder or a hub name such as THUDM/chatglm-6b")
    if calibration_tokens is not None and calibrate is None and bits is None:
        raise UsageError("--calibration-tokens says how much of a text to read; name it with --calibrate FILE")
    if bits is not None and weights is not None:
        raise UsageError(f"--bits {bits:g} chooses a format for each matrix, and --weights {weights} for all; give one")
    from glmcpu.convert import CALIBRATION_TOKENS, convert
    from glmcpu.kernels.threads import set_threads

    if threads is not None:
        set_threads(threads)
    with terminal.StatusLine() as line:
        path = convert(
            source,
            destination,
            weights=weights or DEFAULT_WEIGHTS,
            bits=bits,
            progress=_Progress(line),
            tokenizer=tokenizer,
            revision=revision,
            offline=offline,
            calibrate=calibrate,
            calibration_tokens=calibration_tokens or CALIBRATION_TOKENS,
            adapter=adapter,
            lora_alpha=lora_alpha,
        )
    terminal.write_line(_result(path))


class _Progress:
    """The bar of the short stages; of calibration, which takes long, the layer and the time left for all of them."""

    def __init__(self, line: terminal.StatusLine) -> None:
        self._line, self._bar = line, terminal.ByteProgress(line)
        self._began: tuple[float, int] | None = None
        self._noted = ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        if not stage.startswith(("calibrating", "measuring")):
            self._bar(stage, done, total)
            return
        now = time.monotonic()
        began_s, before = self._began = self._began or (now, done)
        # A run that goes on does not know how long the layers before took.
        share = (done - before) / max(1, total - before)
        text = f"{stage}, {terminal.left((now - began_s) * (1 / share - 1))}" if share > 0 else stage
        if self._line.active:
            self._line.show(text)
        elif stage != self._noted:
            self._noted = stage
            terminal.note(text)


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
