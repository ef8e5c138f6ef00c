"""`glmcpu tune`: a P-Tuning v2 prefix for a packed model, learnt from a file of examples.

Progress goes to stderr; on stdout one line says what was written and how to use it.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from glmcpu import limits
from glmcpu.cli import terminal
from glmcpu.cli.options import columns_options, debug_option, device_options, threads_option, whole_number
from glmcpu.errors import UsageError, printable, shown

if TYPE_CHECKING:
    from glmcpu.tuning import Report

F = TypeVar("F", bound=Callable[..., Any])

_NOTES = 20  # lines of progress where stderr is no terminal


def settings_options(function: F) -> F:
    """The fields of tuning.Settings, under their names there; None where one is not given."""

    def whole(*names: str, low: int = 1, high: int = limits.TUNING_STEPS, default: str, text: str) -> Callable[[F], F]:
        check = whole_number(low, high)
        return click.option(*names, callback=check, metavar="N", help=f"{text}  [default: {default}]")

    options = (
        whole("--prefix-tokens", default="128", text="Length of the prefix."),
        click.option("--projection", is_flag=True, default=None, help="Learn the prefix by way of two layers."),
        click.option("--learning-rate", type=float, metavar="X", help="The highest one.  [default: 0.02]"),
        click.option(
            "--schedule",
            type=click.Choice(["linear", "cosine", "constant"]),
            help="How the learning rate falls.  [default: linear]",
        ),
        whole("--warm-up", low=0, default="0", text="Steps in which the learning rate grows."),
        whole("--batch", default="1", text="Examples read together."),
        whole("--accumulation", default="16", text="Batches for each step."),
        whole("--steps", default="3000", text="How many steps."),
        click.option("--epochs", type=float, metavar="X", help="In place of --steps: passes over the examples."),
        whole("--max-source-length", "source_tokens", low=2, default="64", text="Of a question; the rest is cut."),
        whole("--max-target-length", "target_tokens", low=3, default="64", text="Of an answer; the rest is cut."),
        whole("--seed", low=0, high=1 << 32, default="42", text="Another order, another beginning."),
        whole("--save-every", default="1000", text="Steps between two checkpoints."),
        whole("--evaluate-every", default="as --save-every", text="Steps between two looks at --validation."),
        whole("--patience", default="never", text="End after so many looks without a better loss."),
        click.option("--checkpointing", is_flag=True, default=None, help="Less memory, a third more time."),
    )
    return functools.reduce(lambda decorated, option: option(decorated), reversed(options), function)


@click.command(name="tune")
@click.argument("examples", metavar="DATA.jsonl")
@click.option("--base", "-b", metavar="MODEL", help="The model to tune: its name or file.  [default: the only one]")
@click.option("--output", "-o", required=True, metavar="FOLDER", help="Where the prefix and its checkpoints go.")
@click.option("--validation", metavar="FILE", help="Examples to measure the loss on; the best prefix is kept.")
@settings_options
@columns_options
@click.option("--resume", is_flag=True, help="Go on where the training in FOLDER was.")
@click.option("--overwrite", is_flag=True, help="Begin anew, whatever FOLDER holds.")
@device_options
@threads_option
@debug_option
def command(
    examples: str,
    base: str | None,
    output: str,
    validation: str | None,
    prompt_column: str,
    response_column: str,
    history_column: str,
    resume: bool,
    overwrite: bool,
    device: str | None,
    dtype: str | None,
    threads: int | None,
    **settings: Any,
) -> None:
    """Teach a model by examples (P-Tuning v2).

    DATA.jsonl has a line {"prompt": "..", "response": ".."} for each, with "history": [["question", "answer"]] if there
    is one. The weights stay as they are; what is learnt is a prefix, which `glmcpu chat --adapter FOLDER` puts before
    every conversation, and which the official code reads. It needs pip install "glmcpu[tune]". Interrupt it as you
    like: --resume goes on from the last checkpoint.
    """
    if resume and overwrite:
        raise UsageError("--resume goes on and --overwrite begins anew; give one of them")
    tuning = _imported()
    from glmcpu import store
    from glmcpu.cli import plot_loss
    from glmcpu.files import expanded
    from glmcpu.texts import Columns

    chosen = tuning.Settings(**{name: value for name, value in settings.items() if value is not None})
    path, folder = store.only() if base is None else store.find(base), expanded(output)
    with terminal.StatusLine() as line, _interruptible(line, folder):
        state = tuning.tune(
            examples,
            path,
            output,
            settings=chosen,
            validation=validation,
            columns=Columns(prompt_column, response_column, history_column),
            device=device,
            dtype=dtype,
            threads=threads,
            resume=resume,
            overwrite=overwrite,
            report=_Progress(line),
            note=terminal.note,
        )
    plot_loss.draw(state.log, folder / "loss.svg")
    best = f"best validation loss {state.best:.4f}" if state.best is not None else f"loss {state.log[-1]['loss']:.4f}"
    terminal.write_line(
        f"wrote {shown(output)}: {state.step:,} steps, {best}; next: glmcpu chat {printable(path, 200)} "
        f"--adapter {printable(output, 200)}"
    )


@contextlib.contextmanager
def _interruptible(line: terminal.StatusLine, output: Path) -> Iterator[None]:
    """Says how to go on, where there is something to go on with."""
    from glmcpu.tuning.state import FILE

    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        line.clear()
        if (output / FILE).exists():
            terminal.note("the same command with --resume goes on from the last checkpoint")
        raise


def _imported() -> Any:
    """glmcpu.tuning; raises UsageError that says how to install what it needs."""
    try:
        import matplotlib  # noqa: F401

        from glmcpu import tuning
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "glmcpu":
            raise
        raise UsageError(
            f'tuning needs {error.name}, which is not installed; run pip install "glmcpu[tune]"'
        ) from error
    return tuning


class _Progress:
    """The newest losses and the time left."""

    def __init__(self, line: terminal.StatusLine) -> None:
        self._line, self._noted, self._validation = line, 0, ""

    def __call__(self, report: "Report") -> None:
        if report.validation is not None:
            self._validation = f", validation {report.validation:.4f}"
        text = f"step {report.step:,} of {report.steps:,}, loss {report.loss:.4f}{self._validation}"
        if self._line.active and report.validation is None:
            self._line.show(f"{text}, {terminal.left(report.seconds_left)}")
            return
        part = _NOTES * report.step // report.steps
        if report.validation is not None or part > self._noted:
            self._noted = part
            self._line.clear()
            terminal.note(f"{text}, {terminal.left(report.seconds_left)}")
