"""`glmcpu serve` and `glmcpu web`: the same server, without and with a page that opens in the browser.

On stderr: where it listens, when the model is there, then one JSON line for each request.
"""

import functools
import logging
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from glmcpu import limits, store
from glmcpu.cli import terminal
from glmcpu.cli.chat import find_model, load_model
from glmcpu.cli.log_lines import LogLines
from glmcpu.cli.options import context_option, debug_option, loading_options, whole_number
from glmcpu.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from glmcpu.engine import Engine

F = TypeVar("F", bound=Callable[..., Any])

_HOST, _PORT, _PARALLEL, _QUEUE = "127.0.0.1", 8000, 8, 64


def server_options(function: F) -> F:
    """The options of both commands."""
    options = (
        click.argument("model", required=False),
        click.option("--host", default=_HOST, show_default=True, metavar="ADDRESS", help="Where to listen."),
        click.option("--port", default=_PORT, show_default=True, callback=whole_number(0, 65535), metavar="N"),
        click.option(
            "--api-key",
            default="",
            envvar="GLMCPU_API_KEY",
            metavar="KEY",
            help="Ask for this key; better set GLMCPU_API_KEY, which no other user sees.",
        ),
        click.option(
            "--allow-origin", multiple=True, metavar="ORIGIN", help="Let a web page of this origin use the server."
        ),
        click.option(
            "--parallel",
            default=_PARALLEL,
            show_default=True,
            callback=whole_number(1, limits.PARALLEL),
            metavar="N",
            help="Answers at once.",
        ),
        click.option(
            "--queue",
            default=_QUEUE,
            show_default=True,
            callback=whole_number(0, 10_000),
            metavar="N",
            help="Requests that may wait for one; others are answered 429.",
        ),
        click.option("--log-text", is_flag=True, help="Write prompts and answers into the log too."),
        context_option,
        loading_options,
        debug_option,
    )
    return functools.reduce(lambda decorated, option: option(decorated), reversed(options), function)


@click.command(name="serve")
@server_options
@click.option("--web", is_flag=True, help="Serve the chat page too, at /web.")
def command(web: bool, **options: Any) -> None:
    """Serve a model over HTTP: OpenAI's protocol under /v1, the official api.py's at /.

    MODEL is as for chat. The server listens on this machine only; beyond it an API key is required. See /docs on the
    running server for what it answers.
    """
    run(web=web, browser=False, **options)


@click.command(name="web")
@server_options
@click.option("--no-browser", is_flag=True, help="Do not open the page in the browser.")
def web_command(no_browser: bool, **options: Any) -> None:
    """Chat with a model on a page in the browser; the API is served beside it.

    MODEL is as for chat.
    """
    run(web=True, browser=not no_browser, **options)


def run(
    *,
    model: str | None,
    host: str,
    port: int,
    api_key: str,
    allow_origin: tuple[str, ...],
    parallel: int,
    queue: int,
    log_text: bool,
    web: bool,
    browser: bool,
    context: int | None,
    loading: dict[str, Any],
) -> None:
    """Serves until a signal."""
    _end_quietly()
    server = _imported("server", "fastapi", web=False)
    if web:
        _imported("web", "gradio", web=True)
    server.check_address(host, api_key, allow_origin)
    path = find_model(model)
    taken = server.take_port(host, port)
    url = server.address_of(taken)
    lines = _log_lines()
    from glmcpu.server.app import WEB, Settings
    from glmcpu.server.guard import Rules
    from glmcpu.server.service import Service

    terminal.note(f"listening on {url}, loading {path.name}")
    service = Service(
        path.name.removesuffix(store.SUFFIX), lambda: _engine(path, parallel, queue, context=context, **loading)
    )
    rules = Rules(api_key, host, allow_origin)

    def ready() -> None:
        page = f"; the page is {url}{WEB}" if web else ""
        _say(f"ready: OpenAI's protocol at {url}/v1{page}; Ctrl-C ends")
        if browser:
            import webbrowser

            webbrowser.open(f"{url}{WEB}")

    try:
        server.serve(service, Settings(rules, log_text, web), taken, ready=ready)
        _say("ended")
    finally:
        lines.close()
    server.exit_now()


def _engine(path: "Path", parallel: int, queue: int, **loading: Any) -> "Engine":
    from glmcpu.engine import Engine
    from glmcpu.rounds import require_tokenizer

    model = load_model(path, **loading)
    require_tokenizer(model)
    model.compile()
    return Engine(model, parallel=parallel, waiting=queue)


def _imported(extra: str, library: str, *, web: bool) -> Any:
    """The module that needs an extra; raises UsageError that says how to install it."""
    try:
        if web:
            from glmcpu import web as page

            return page
        from glmcpu.server import run as server

        return server
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "glmcpu":
            raise
        extras = "server,web" if web else "server"
        raise UsageError(
            f'this needs {error.name or library}, which is not installed; run pip install "glmcpu[{extras}]"'
        ) from error


def _say(text: str) -> None:
    """A line for a person among those of the log; nobody waits for it to be read."""
    logging.getLogger("glmcpu").info("glmcpu: %s", text)


def _log_lines() -> LogLines:
    """Our loggers write bare lines to stderr, uvicorn's only what went wrong."""
    handler = LogLines()
    for name, level in (("glmcpu", logging.INFO), ("uvicorn.error", logging.ERROR)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
    return handler


def _end_quietly() -> None:
    """A server that is asked to end before it has begun has done what it was asked."""
    for name in ("SIGTERM", "SIGINT"):
        signal.signal(getattr(signal, name), lambda *_: sys.exit(0))
