"""`glmcpu batch`: a file of questions answered many at a time, in order, and gone on with after whatever ended it.

Nothing is written to stdout; bad lines, progress and the figures go to stderr.
"""

import time
from typing import TYPE_CHECKING, Any

import click

from glmcpu import limits
from glmcpu.cli import terminal
from glmcpu.cli.chat import find_model, load_model
from glmcpu.cli.options import (
    context_option,
    debug_option,
    loading_options,
    make_sampler,
    max_new_tokens_option,
    sampling_options,
    whole_number,
)
from glmcpu.errors import printable

if TYPE_CHECKING:
    from glmcpu.batch import Figures

SOME_FAILED = 3
REPORTED = 20  # lines with errors that are told one by one; the output has them all


@click.command(name="batch")
@click.argument("source", metavar="IN.jsonl")
@click.argument("target", metavar="OUT.jsonl")
@click.option("--model", "-m", metavar="NAME", help="Its name or file.  [default: the only one there is]")
@click.option("--system", "-s", metavar="TEXT", help="Put TEXT before each conversation as a first round.")
@sampling_options
@max_new_tokens_option
@click.option(
    "--parallel", callback=whole_number(1, limits.PARALLEL), metavar="N", help="Lines answered at once.  [default: 8]"
)
@click.option("--overwrite", is_flag=True, help="Begin anew, whatever OUT.jsonl holds.")
@context_option
@loading_options
@debug_option
def command(
    source: str,
    target: str,
    model: str | None,
    system: str | None,
    max_new_tokens: int | None,
    parallel: int | None,
    overwrite: bool,
    context: int | None,
    loading: dict[str, Any],
    **sampling: Any,
) -> None:
    """Answer a file of questions.

    Each line of IN.jsonl is a question {"prompt": ".."}. It may have "history": [["question", "answer"]], "system",
    "stop", an "id" that is found again in the answer, and the options below by their names, such as "top_p" or
    "max_new_tokens", where they are to differ. OUT.jsonl gets a line for each in the same order: {"line": N,
    "response": "..", "finish_reason": "stop" or "length", ..}, or {"line": N, "error": ".."} when the line is wrong.

    Interrupt it as you like: the same command goes on where it was. With --seed N line n is drawn with the seed N + n,
    so the answers do not depend on --parallel. The exit code is 3 when all is done and some lines had errors; ask
    those again in a file of their own.
    """
    from glmcpu import batch, engine
    from glmcpu.batch_lines import Options
    from glmcpu.files import expanded

    # What can be wrong with the request is found before gigabytes are opened.
    options = Options(make_sampler(**sampling), max_new_tokens, system)
    here, there = expanded(source), expanded(target)
    batch.check_different(here, there)
    loaded = load_model(find_model(model), context=context, **loading)
    with engine.Engine(loaded, parallel=parallel or engine.PARALLEL) as running, terminal.StatusLine() as line:
        began_s = time.monotonic()
        work = batch.Batch(running, here, there, options, progress=_Answering(line).show, report=_Reports(line))
        try:
            work.run(overwrite=overwrite)
        except (KeyboardInterrupt, SystemExit):
            line.clear()
            done, lines = work.figures.done, work.figures.lines
            terminal.note(f"{done:,} of {lines:,} lines are answered; the same command goes on there")
            raise
    terminal.note(summary(work.figures, time.monotonic() - began_s))
    if work.figures.failed:
        raise click.exceptions.Exit(SOME_FAILED)


def summary(figures: "Figures", seconds: float) -> str:
    """What a run has done, for a person."""
    parts = [f"{figures.done - figures.failed:,} answered"]
    if figures.failed:
        named = ", ".join(f"{number:,}" for number in figures.failed_lines)
        more = ", .." if figures.failed > len(figures.failed_lines) else ""
        parts.append(f"{figures.failed:,} with errors (line{'s' * (figures.failed > 1)} {named}{more})")
    if figures.done == figures.kept:
        return f"{figures.done:,} lines: {', '.join(parts)}, all of them before"
    before = f", {figures.kept:,} of them before, the rest" if figures.kept else ""
    took = f"{int(seconds) // 60}:{int(seconds) % 60:02d}, {figures.tokens / max(seconds, 1e-3):,.1f} tokens/s"
    return f"{figures.done:,} lines: {', '.join(parts)}{before} in {took}"


class _Answering(terminal.Counted):
    """The progress of a batch. Tokens come long before the first line is done."""

    def __init__(self, line: terminal.StatusLine) -> None:
        super().__init__(line, "lines")
        self._tokens = 0

    def show(self, figures: "Figures") -> None:
        """Shows how far it is."""
        self._tokens = figures.tokens
        self("answering", figures.done, figures.lines)

    def _amount(self, done: int, total: int) -> str:
        return f"{super()._amount(done, total)}, {self._tokens:,} tokens"


class _Reports:
    """Tells of lines with errors, above the progress, as long as they are few."""

    def __init__(self, line: terminal.StatusLine) -> None:
        self._line = line
        self._count = 0

    def __call__(self, text: str) -> None:
        self._count += 1
        if self._count <= REPORTED:
            self._line.clear()
            terminal.note(printable(text, 240))
        if self._count == REPORTED:
            terminal.note("further errors are told in the output alone")
