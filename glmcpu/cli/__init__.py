"""The command `glmcpu`: one file per command, and one place where a failure becomes a line and an exit code.

    0  done            2  the request is wrong       4  the machine refuses (disk, memory, permission)
    1  a bug of ours   3  a file is not as it should 5  the network                 130 / 143  Ctrl-C / terminated

Every failure is one line on stderr: what failed, what was expected, what to do. A traceback appears with --debug only.
Commands import what they need when they run, so that `glmcpu --help` is instant.
"""

import _thread
import contextlib
import difflib
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

import click

from glmcpu import __version__
from glmcpu.cli import batch, bench, chat, convert, info, ls, rm, serve, terminal, tune, verify
from glmcpu.cli import eval as evaluation
from glmcpu.cli.options import DEBUG, debug_option
from glmcpu.errors import GlmcpuError, Notice, printable, shown
from glmcpu.files import reason

LINE_CHARS = 292  # with the program's name in front 300
AGAIN_S = 0.05
CLOSED_PIPE = 141  # what a shell reports for a program that SIGPIPE ended


class _Group(click.Group):
    """A group that names the command you meant."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            near = difflib.get_close_matches(name, self.commands, 1)
            hint = f"did you mean '{near[0]}'" if near else f"commands: {', '.join(self.list_commands(ctx))}"
            ctx.fail(f"no such command '{name}'; {hint}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=_Group,
    invoke_without_command=True,
    subcommand_metavar="COMMAND [ARGS]...",  # click's own wording differs from release to release
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="glmcpu", message="%(prog)s %(version)s")
@debug_option
@click.pass_context
def group(context: click.Context) -> None:
    """ChatGLM-6B on a CPU: convert a checkpoint once, then talk to it."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for _module in (batch, bench, chat, convert, evaluation, info, ls, rm, serve, tune, verify):
    group.add_command(_module.command)
group.add_command(serve.web_command)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code; `argv` without the program's name, None for sys.argv."""
    terminal.use_utf8()
    arguments = list(sys.argv[1:] if argv is None else argv)
    settings: dict[str, bool] = {}
    with _ending_signals(), _notices():
        try:
            code = _run(arguments, settings)
            if sys.stdout is not None:
                sys.stdout.flush()
            return code
        except BrokenPipeError:
            terminal.silence_stdout()
            return CLOSED_PIPE
        except BaseException as error:
            if settings.get(DEBUG):
                traceback.print_exc()
            code, line = explain(error)
            if line:
                terminal.note(printable(line, LINE_CHARS))
            with contextlib.suppress(ValueError):
                _flush_or_silence()
            return code


def explain(error: BaseException) -> tuple[int, str]:
    """The exit code of a failure and its line for stderr, empty when nothing needs saying."""
    if isinstance(error, GlmcpuError):
        return error.exit_code, f"error: {error}"
    if isinstance(error, click.ClickException):
        return 2, f"error: {_click_message(error)}"
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return 130, "interrupted"
    if isinstance(error, SystemExit):
        return (error.code, "terminated") if isinstance(error.code, int) else (1, f"error: {error.code}")
    if isinstance(error, MemoryError):
        return 4, "error: not enough memory; close other programs, or lower --context"
    if isinstance(error, FileNotFoundError) and error.filename is None:
        return 4, "error: the working folder was deleted; change to one that exists and run again"
    if isinstance(error, OSError):
        name = f"{shown(error.filename)}: " if error.filename is not None else ""
        return 4, f"error: {name}the system refuses: {reason(error)}; remove the cause and run again"
    kind = type(error).__name__
    return 1, f"error: a bug in glmcpu, {kind}: {error}; run again with --debug and report what it prints"


def _run(arguments: list[str], settings: dict[str, bool]) -> int:
    # Not click's own main(): it has other exit codes and ends the process itself.
    try:
        with group.make_context("glmcpu", arguments, obj=settings) as context:
            group.invoke(context)
    except click.exceptions.Exit as ending:
        return ending.exit_code
    return 0


def _click_message(error: click.ClickException) -> str:
    message = " ".join(error.format_message().split()).rstrip(".")
    context = getattr(error, "ctx", None)
    help_of = context.command_path if context is not None else "glmcpu"
    return f"{message[:1].lower()}{message[1:]}; see '{help_of} --help'"


@contextlib.contextmanager
def _ending_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind the program like an exception, so that temporary files go and the terminal is sane.

    Python drops an exception that meets it in a callback of C code, such as the compiler's: the signal is sent again.
    """
    last: int = signal.SIGTERM
    hook = sys.unraisablehook

    def end(number: int, _: FrameType | None) -> None:
        nonlocal last
        last = number
        raise SystemExit(128 + number)

    def send_again(dropped: Any) -> None:
        if issubclass(dropped.exc_type, (KeyboardInterrupt, SystemExit)):
            number = signal.SIGINT if issubclass(dropped.exc_type, KeyboardInterrupt) else last
            threading.Timer(AGAIN_S, _thread.interrupt_main, [number]).start()
        else:
            hook(dropped)

    before = {}
    sys.unraisablehook = send_again
    for name in ("SIGTERM", "SIGHUP"):
        # ValueError: not the main thread; AttributeError: Windows has no SIGHUP.
        with contextlib.suppress(ValueError, AttributeError):
            number = getattr(signal, name)
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup asks to live on
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _notices() -> Iterator[None]:
    """Makes each of our own warnings a line on stderr, every time it comes."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        first, *_others = str(message).splitlines() or [""]
        terminal.note(f"note: {printable(first, LINE_CHARS)}")

    with warnings.catch_warnings():
        warnings.simplefilter("always", Notice)
        warnings.showwarning = show
        yield


def _flush_or_silence() -> None:
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        terminal.silence_stdout()
