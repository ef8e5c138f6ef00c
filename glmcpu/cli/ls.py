"""`glmcpu ls`: the packed models of the models folder."""

from datetime import datetime
from pathlib import Path

import click

from glmcpu.cli import terminal
from glmcpu.cli.options import debug_option
from glmcpu.errors import GlmcpuError, printable, shown


@click.command(name="ls")
@debug_option
def command() -> None:
    """List the models in the models folder.

    One line each: name, format, size, date.
    """
    from glmcpu import store

    found = store.models()
    if not found:
        terminal.note(
            f"no models in {shown(store.home())} but the demo that comes with glmcpu; make one with: "
            "glmcpu convert THUDM/chatglm-6b"
        )
    rows = [_row(path) for path in found or [store.embedded()]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, weights, size, date in rows:
        terminal.write_line(f"{name:{widths[0]}}  {weights:{widths[1]}}  {size:>{widths[2]}}  {date}")


def _row(path: Path) -> tuple[str, str, str, str]:
    from glmcpu import store
    from glmcpu.model import describe

    found = path.stat()
    try:
        weights = str(describe(path).weights)
    except GlmcpuError:
        weights = "broken"  # `glmcpu verify` says how
    date = datetime.fromtimestamp(found.st_mtime).strftime("%Y-%m-%d %H:%M")
    return printable(path.name.removesuffix(store.SUFFIX)), printable(weights), terminal.size(found.st_size), date
