"""`glmcpu chat`: a conversation on a terminal; elsewhere one question and its bare answer.

terminal                 banner, prompt, editing, commands: repl.py
not a terminal, --prompt  the question from --prompt or stdin; the answer alone on stdout, all else on stderr
"""

import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from glmcpu import limits, store
from glmcpu.cli import terminal
from glmcpu.cli.options import (
    context_option,
    debug_option,
    loading_options,
    make_sampler,
    max_new_tokens_option,
    sampling_options,
)
from glmcpu.errors import UsageError

if TYPE_CHECKING:
    from glmcpu.model import Model


_EMBEDDED = (
    "this is the demo model that comes with glmcpu: 5 million parameters, and it knows glmcpu and small talk; "
    "the real one: glmcpu convert THUDM/chatglm-6b"
)


@click.command(name="chat")
@click.argument("model", required=False)
@click.option("--prompt", "-p", metavar="TEXT", help="Answer TEXT and end.")
@click.option("--system", "-s", metavar="TEXT", help="Put TEXT before the conversation as a first round.")
@sampling_options
@max_new_tokens_option
@context_option
@loading_options
@click.option("--stats", is_flag=True, help="Show tokens per second after each answer.")
@click.option(
    "--lookup/--no-lookup",
    default=True,
    show_default=True,
    help="Guess ahead from what was said before (cpu): faster where an answer repeats it, and the same text.",
)
@debug_option
def command(
    model: str | None,
    prompt: str | None,
    system: str | None,
    max_new_tokens: int | None,
    context: int | None,
    stats: bool,
    lookup: bool,
    loading: dict[str, Any],
    **sampling: Any,
) -> None:
    """Talk to a model.

    MODEL is a name in the models folder or a file; without it the only model there is answers, or, where none is, the
    small one that comes with glmcpu. Without a terminal the question is read from stdin or --prompt, and only the
    answer is written to stdout.
    """
    from glmcpu.chat import ChatSession

    # What can be wrong with the request is found before gigabytes are opened.
    sampler = make_sampler(**sampling)
    interactive = prompt is None and terminal.is_terminal(sys.stdin) and terminal.is_terminal(sys.stdout)
    path = find_model(model)
    question = "" if interactive else read_prompt(prompt)
    loaded = load_model(path, context=context, **loading)
    session = ChatSession(loaded, sampler=sampler, max_new_tokens=max_new_tokens, system=system, lookup=lookup)
    if interactive:
        from glmcpu.cli import repl

        repl.run(session, store.home() / "chat_history", stats=stats)
    else:
        from glmcpu.cli.answer import explain_end, show_answer, stats_line

        show_answer(functools.partial(session.say, question))
        if session.last is not None:
            explain_end(session.last)
            if stats:
                terminal.note(stats_line(session.last))


def read_prompt(prompt: str | None) -> str:
    """The question of a single answer: `prompt`, or all of stdin. Bytes that are no UTF-8 are replaced.

    Raises UsageError when there is none, or more than limits.INPUT_BYTES of it.
    """
    if prompt is None:
        prompt = _read_stdin()
    if not prompt.strip():
        raise UsageError("the prompt is empty; give --prompt TEXT, or a text on standard input")
    return prompt


def find_model(model: str | None) -> Path:
    """The file of the model named on the command line, or the only one there is."""
    return store.only() if model is None else store.find(model)


def load_model(path: Path, **options: Any) -> "Model":
    """Opens a packed file; lines say when it is the demo model, what its adapter is, and when kernels are compiled."""
    from glmcpu.model import Model

    if path == store.embedded():
        terminal.note(_EMBEDDED)
    model = Model.load(path, **options)
    if model.adapter is not None:
        for note in (model.adapter.about, *model.adapter.notes):
            terminal.note(note)
    if not model.is_compiled():
        terminal.note("compiling the kernels for this machine, which is done once and takes some seconds")
        model.compile()
    return model


def _read_stdin() -> str:
    if sys.stdin is None:
        return ""
    if terminal.is_terminal(sys.stdin):
        terminal.note("type the question; Ctrl-D on a line of its own ends it")
    data = sys.stdin.buffer.read(limits.INPUT_BYTES + 1)
    if len(data) > limits.INPUT_BYTES:
        raise UsageError(f"standard input: more than {limits.INPUT_BYTES:,} bytes, the most that is read; shorten it")
    # PowerShell puts a byte order mark before what it pipes.
    return data.decode("utf-8-sig", "replace").replace("\r\n", "\n").rstrip("\n")
