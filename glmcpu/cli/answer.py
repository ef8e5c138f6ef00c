"""One answer on the console: progress while the prompt is read, then the words as they come, then what is to be said.

The progress line appears only when reading takes longer than a second, and is gone before the first word.
"""

import contextlib
import time
from collections.abc import Callable, Generator
from typing import Any

from glmcpu.chat import Stats
from glmcpu.cli import terminal

PATIENCE_S = 1.0

Ask = Callable[..., Generator[str, None, None]]


def show_answer(ask: Ask, label: str = "") -> None:
    """Writes `label`, the pieces of `ask(progress=...)` and a line end to stdout.

    An interrupt passes through, after the session has recorded what was said.
    """
    begun = False
    try:
        with terminal.StatusLine() as line, contextlib.closing(ask(progress=_reading(line))) as pieces:
            for piece in pieces:
                if not begun:
                    line.clear()
                    terminal.write(label)
                    begun = True
                terminal.write(terminal.visible(piece))
    except BaseException:
        if begun:
            terminal.write("\n")
        raise
    terminal.write("\n" if begun else f"{label}\n")


def explain_end(stats: Stats) -> None:
    """Says on stderr why an answer ended when it did not end by itself."""
    if stats.finish_reason == "length":
        terminal.note(
            f"note: the answer was cut after {stats.answer_tokens:,} tokens, where --max-new-tokens or the context ends"
        )


def stats_line(stats: Stats) -> str:
    """The speeds of an answer, for a person."""
    lookup = f", lookup: {stats.accepted:,} of {stats.drafts:,} drafts" if stats.lookup else ""
    return (
        f"prompt {stats.prompt_tokens:,} tokens in {stats.prompt_s:.2f} s "
        f"({stats.prompt_tokens_per_s:.1f} tokens/s), answer {stats.answer_tokens:,} tokens in {stats.answer_s:.2f} s "
        f"({stats.answer_tokens_per_s:.1f} tokens/s){lookup}"
    )


def _reading(line: terminal.StatusLine) -> Callable[[int, int], Any]:
    began_s = time.monotonic()

    def progress(done: int, layers: int) -> None:
        if time.monotonic() - began_s > PATIENCE_S:
            line.show(f"reading the prompt: layer {done} of {layers}")

    return progress
