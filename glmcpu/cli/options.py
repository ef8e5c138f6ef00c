"""Options that several commands share, and the checks of their values, so that each has one wording."""

import difflib
import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from glmcpu import backends, formats, limits
from glmcpu.errors import UsageError, printable

if TYPE_CHECKING:
    from glmcpu.sampling import Sampler

DEBUG = "debug"  # the key of --debug in the context's settings
SMALLEST_CONTEXT = 16
LOADING = ("adapter", "lora_alpha", "backend", "device", "dtype", "cache", "threads")

F = TypeVar("F", bound=Callable[..., Any])
Check = Callable[[click.Context, click.Parameter, Any], Any]


def whole_number(low: int, high: int | None = None) -> Check:
    """A click callback: a whole number from `low` to `high`, or None when the option is not given."""

    def check(_: click.Context, __: click.Parameter, value: Any) -> int | None:
        if value is None:
            return None
        try:
            number = int(value)
        except ValueError:
            number = low - 1
        if number < low or (high is not None and number > high):
            span = f"{low:,} or more" if high is None else f"{low:,} to {high:,}"
            raise click.BadParameter(f"'{printable(value, 40)}' is not a whole number, {span}")
        return number

    return check


def weight_format(_: click.Context, __: click.Parameter, value: str) -> str:
    """A click callback: the name of a weight format; a wrong one is answered with the nearest and the whole list."""
    known = formats.names()
    if value not in known:
        near = difflib.get_close_matches(value, known, 1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise click.BadParameter(f"'{printable(value)}' is no weight format; {hint}formats: {', '.join(known)}")
    return value


def debug_option(function: F) -> F:
    """`--debug`, accepted before and after a command's name."""
    return click.option(
        "--debug", is_flag=True, expose_value=False, callback=_remember_debug, help="Show a traceback on failure."
    )(function)


def threads_option(function: F) -> F:
    """`--threads N`, from 1 to the number of processors."""
    return click.option(
        "--threads",
        "-t",
        callback=whole_number(1, os.cpu_count()),
        metavar="N",
        help="Threads to use.  [default: one for each core]",
    )(function)


def context_option(function: F) -> F:
    """`--context N`: tokens of prompt and answer together."""
    return click.option(
        "--context",
        "-c",
        type=str,
        callback=whole_number(SMALLEST_CONTEXT, limits.CONTEXT),
        metavar="N",
        help="Tokens of prompt and answer together.  [default: what the model was trained with; 2048 for ChatGLM-6B]",
    )(function)


def cache_option(function: F) -> F:
    """`--cache KIND`: how keys and values are kept."""
    return click.option(
        "--cache",
        type=click.Choice(["f16", "int8", "f32"]),
        help="How keys and values are kept; int8 takes half the memory of f16.  [default: what suits the weights]",
    )(function)


def device_options(function: F) -> F:
    """Where torch computes, and in which precision."""
    for option in (
        click.option(
            "--dtype",
            type=click.Choice(["f16", "bf16", "f32"]),
            help="Of torch's products.  [default: f32 on a CPU, two bytes elsewhere]",
        ),
        click.option("--device", metavar="NAME", help="Of torch: cuda, mps or cpu.  [default: the best there is]"),
    ):
        function = option(function)
    return function


def columns_options(function: F) -> F:
    """What the keys of a JSONL line are called."""
    for column in ("history", "response", "prompt"):
        function = click.option(
            f"--{column}-column",
            default=column,
            show_default=True,
            metavar="KEY",
            help=f"What a line calls the {column}.",
        )(function)
    return function


def loading_options(function: Callable[..., None]) -> Callable[..., None]:
    """How a model is loaded: `function` gets these options as one dictionary `loading`, for Model.load."""
    options = (
        click.option("--adapter", metavar="PATH", help="A P-Tuning or LoRA checkpoint to use with the model."),
        click.option("--lora-alpha", type=float, metavar="X", help="For LoRA files that do not state it; else 32."),
        click.option(
            "--backend",
            type=click.Choice(backends.NAMES),
            default="cpu",
            show_default=True,
            help='What computes; torch needs pip install "glmcpu[torch]".',
        ),
        device_options,
        cache_option,
        threads_option,
    )

    @functools.wraps(function)
    def command(**given: Any) -> None:
        function(loading={name: given.pop(name) for name in LOADING}, **given)

    for option in reversed(options):
        command = option(command)
    return command


def sampling_options(function: F) -> F:
    """How the next token is chosen: what `make_sampler` takes."""
    for option in reversed(
        (
            click.option("--temperature", "--temp", type=float, metavar="X", help="0 is greedy.  [default: 0.95]"),
            click.option("--top-p", type=float, default=0.7, show_default=True, metavar="X"),
            click.option("--top-k", type=int, default=50, show_default=True, metavar="N", help="0 is off."),
            click.option("--repetition-penalty", type=float, default=1.0, show_default=True, metavar="X"),
            click.option("--greedy", is_flag=True, help="Take the likeliest token; the same as --temperature 0."),
            click.option("--seed", callback=whole_number(0), metavar="N", help="Repeat the same choices."),
        )
    ):
        function = option(function)
    return function


def make_sampler(*, greedy: bool, temperature: float | None, **rest: Any) -> "Sampler":
    """The Sampler of the options; raises UsageError for one out of range."""
    from glmcpu.sampling import Sampler

    if greedy and temperature:
        raise UsageError(f"--greedy and --temperature {temperature} contradict each other; give one of them")
    default = 0.0 if greedy else Sampler().temperature
    return Sampler(temperature=default if temperature is None else temperature, **rest)


def max_new_tokens_option(function: F) -> F:
    """`--max-new-tokens N`: a bound of each answer."""
    return click.option(
        "--max-new-tokens", "-n", callback=whole_number(1, limits.CONTEXT), metavar="N", help="The longest answer."
    )(function)


def _remember_debug(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.find_root().ensure_object(dict)[DEBUG] = True
