"""Options that several commands share, and the checks of their values, so that each has one wording."""

import difflib
import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from glmcpu import formats, limits
from glmcpu.errors import printable

DEBUG = "debug"  # the key of --debug in the context's settings
SMALLEST_CONTEXT = 16

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


def _remember_debug(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.find_root().ensure_object(dict)[DEBUG] = True
