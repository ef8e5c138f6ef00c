"""`glmcpu bench`: tokens per second, and how much of what the machine can do that is.

A model file is measured as it is. The name of a published architecture makes a random one of that shape first, which
is removed afterwards. On stdout the table, and with --json one object on the last line; all else goes to stderr.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from glmcpu import formats, limits
from glmcpu.cli import terminal
from glmcpu.cli.options import Check, debug_option, loading_options, weight_format, whole_number
from glmcpu.errors import UsageError, printable

if TYPE_CHECKING:
    from glmcpu.bench import Ceilings, Event, Plan, Run

DEFAULT_WEIGHTS = "int4_g32"
_HEADER = f"{'':8}{'tokens':>7}{'batch':>6}{'tok/s':>9}{'p10 .. p90':>18}{'ms':>9}   ceiling"


def whole_numbers(low: int, high: int) -> Check:
    """A click callback: whole numbers from `low` to `high` between commas, or None when the option is not given."""
    check = whole_number(low, high)

    def check_all(context: click.Context, parameter: click.Parameter, value: Any) -> tuple[int, ...] | None:
        if value is None:
            return None
        return tuple(check(context, parameter, part.strip()) for part in value.split(","))

    return check_all


def weight_formats(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """A click callback: names of weight formats between commas."""
    if value is None:
        return None
    return tuple(weight_format(context, parameter, part.strip()) for part in value.split(","))


@click.command(name="bench")
@click.argument("model", required=False)
@click.option(
    "--weights",
    "-w",
    callback=weight_formats,
    metavar="FORMATS",
    help=f"Of random weights: one or more of {', '.join(formats.names())}.  [default: {DEFAULT_WEIGHTS}]",
)
@click.option(
    "--prompts",
    callback=whole_numbers(2, limits.CONTEXT),
    metavar="N,N..",
    help="Lengths of prompts to read.  [default: 128,512,1900]",
)
@click.option(
    "--contexts",
    callback=whole_numbers(2, limits.CONTEXT),
    metavar="N,N..",
    help="Positions held when decoding begins.  [default: 128,512,1900]",
)
@click.option(
    "--batch",
    callback=whole_numbers(1, limits.BENCH_BATCH),
    metavar="N,N..",
    help="Sequences decoded together.  [default: 1,8]",
)
@click.option(
    "--tokens",
    callback=whole_number(1, limits.CONTEXT),
    metavar="N",
    help="Tokens decoded in one measurement.  [default: 32]",
)
@click.option(
    "--repeats",
    callback=whole_number(1, limits.BENCH_REPEATS),
    metavar="N",
    help="Measurements of a row.  [default: 3]",
)
@click.option("--quick", is_flag=True, help="One prompt, one context, one sequence: half a minute.")
@loading_options
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object on the last line.")
@click.option("--plot", "picture", metavar="FILE.svg", help='Draw the result; needs pip install "glmcpu[plot]".')
@debug_option
def command(
    model: str | None,
    weights: tuple[str, ...] | None,
    loading: dict[str, Any],
    as_json: bool,
    picture: str | None,
    **numbers: Any,
) -> None:
    """Measure how fast a model runs here.

    MODEL is a name in the models folder, a file, or chatglm-6b: that architecture with random weights, to see what this
    machine will do before the real ones are downloaded. Without it the only model there is is measured, or chatglm-6b.
    A forward pass and the choice of the likeliest token are timed: prefill is a whole prompt, decode a step of all
    sequences. Prefill is compared with the peak of the dot product, decode with the speed of reading memory.
    """
    from glmcpu import bench

    plan = make_plan(**numbers)
    name = find_model(model)
    if weights is not None and isinstance(name, Path):
        raise UsageError(f"--weights is for random weights, and {printable(name.name)} has its own; leave it out")
    if picture is not None:
        from glmcpu.cli import plot

        plot.require(picture)
    ceilings = bench.ceilings_of(loading)
    _show_machine(ceilings)
    runs: list[Run] = []
    for form in weights or (DEFAULT_WEIGHTS,):
        with _opened(name, form) as (path, forget):
            for event in bench.measure(path, plan, ceilings, forget, **loading):
                if isinstance(event, bench.Run):
                    runs.append(dataclasses.replace(event, model=name.name if isinstance(name, Path) else name))
                _show(event)
    if picture is not None:
        plot.draw(runs, picture)
    if as_json:
        terminal.write_line(to_json(runs))


def make_plan(*, quick: bool, batch: tuple[int, ...] | None, **given: Any) -> "Plan":
    """The Plan of the options; raises UsageError when the longest context and the tokens after it are too long."""
    from glmcpu import bench

    changes = {name: value for name, value in {**given, "batches": batch}.items() if value is not None}
    plan = dataclasses.replace(bench.QUICK if quick else bench.Plan(), **changes)
    longest = max(plan.prompts + plan.contexts)
    if longest + plan.tokens > limits.CONTEXT:
        raise UsageError(
            f"{longest:,} tokens and --tokens {plan.tokens:,} after them: at most {limits.CONTEXT:,} in all"
        )
    return plan


def find_model(model: str | None) -> Path | str:
    """The file to measure, or the name of a published architecture to make one of."""
    from glmcpu import store
    from glmcpu.random_weights import PUBLISHED

    if model in PUBLISHED:
        return str(model)
    if model is not None:
        return store.find(model)
    return store.only() if store.models() else next(iter(PUBLISHED))


def to_json(runs: "list[Run]") -> str:
    """The first run as one line; when several formats were measured, "runs" in it holds all of them."""
    tables = [_rounded(dataclasses.asdict(run)) for run in runs]
    return json.dumps(tables[0] if len(tables) == 1 else {**tables[0], "runs": tables}, allow_nan=False)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, (list, tuple)) else value


@contextlib.contextmanager
def _opened(name: Path | str, weights: str) -> Iterator[tuple[Path, Any]]:
    """The file to measure, and what to call when it is mapped."""
    if isinstance(name, Path):
        yield name, lambda: None
        return
    from glmcpu import random_weights

    with (
        terminal.StatusLine() as line,
        random_weights.temporary_model(name, weights, terminal.ByteProgress(line)) as (path, forget),
    ):
        line.clear()
        yield path, forget


def _show_machine(ceilings: "Ceilings") -> None:
    here = ceilings.machine()
    terminal.write_line(f"machine   {printable(here['cpu'])}, {here['isa']}")
    terminal.write_line(f"threads   {ceilings.threads} of {here['cores']} cores, {here['threading_layer']}")
    terminal.write_line(
        f"ceiling   memory read {ceilings.read_gb_per_s:.1f} GB/s, dot product {ceilings.dot_gmac_per_s:.0f} GMAC/s, "
        f"floats {ceilings.fma_gmac_per_s:.0f} GMAC/s"
    )


def _show(event: "Event") -> None:
    """One line for a row, as it is known."""
    from glmcpu import bench

    if isinstance(event, bench.Opened):
        terminal.write_line(
            f"\nmodel     {event.format}, {event.weights_bytes / 1e9:.2f} GB, opened in {event.load_s:.2f} s"
        )
        if not event.compiled:
            terminal.note("compiling the kernels for this machine, which is done once and takes some seconds")
        terminal.write_line(f"\n{_HEADER}")
    elif isinstance(event, bench.Prefill):
        terminal.write_line(
            _row("prefill", event.tokens, 1, event.tok_per_s, event.spread, 1e3 * event.first_token_s)
            + f"   {event.of_ceiling:4.0%} of {event.peak_gmac_per_s:.0f} GMAC/s"
        )
    elif isinstance(event, bench.Decode):
        terminal.write_line(
            _row("decode", event.context, event.batch, event.tok_per_s, event.spread, event.ms_p50)
            + f"   {event.of_ceiling:4.0%} of {event.read_gb_per_s:.1f} GB/s"
        )
    elif isinstance(event, bench.LeftOut):
        terminal.note(
            f"left out: {event.batch} sequences of {event.context:,} tokens need {terminal.size(event.needed_bytes)} "
            f"more and {terminal.size(event.available_bytes)} are available"
        )
    elif event.peak_rss_bytes is not None:
        terminal.write_line(f"\npeak memory {event.peak_rss_bytes / 1e9:.2f} GB")


def _row(what: str, tokens: int, batch: int, rate: float, spread: tuple[float, float], ms: float) -> str:
    return f"{what:8}{tokens:7}{batch:6}{rate:9.1f}{spread[0]:9.1f} .. {spread[1]:5.1f}{ms:9.1f}"
