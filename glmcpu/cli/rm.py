"""`glmcpu rm`: deletes a packed model from the models folder, and nothing else."""

import difflib
import sys
from pathlib import Path

import click

from glmcpu.cli import terminal
from glmcpu.cli.options import debug_option
from glmcpu.errors import DataError, UsageError, printable, shown


@click.command(name="rm")
@click.argument("name")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@debug_option
def command(name: str, yes: bool) -> None:
    """Delete a model from the models folder."""
    from glmcpu import files

    path = _model(name)
    if not yes:
        if not terminal.is_terminal(sys.stdin):
            raise UsageError(f"{shown(path)}: nobody is here to confirm; add --yes to delete it")
        if not click.confirm(f"delete {shown(path)}?", err=True):
            return
    size_bytes = path.stat().st_size
    files.remove(path)
    terminal.write_line(f"removed {shown(path)}: {terminal.size(size_bytes)}")


def _model(name: str) -> Path:
    """The file of a name in the models folder; a path to somewhere else is refused by not being in the list."""
    from glmcpu import store

    known = {path.name.removesuffix(store.SUFFIX): path for path in store.models()}
    wanted = name.removesuffix(store.SUFFIX)
    if wanted in known:
        return known[wanted]
    near = difflib.get_close_matches(wanted, known, 1)
    hint = f"did you mean {printable(near[0])!r}?" if near else "glmcpu ls shows what there is"
    raise DataError(f"no model {printable(name)!r} in {shown(store.home())}, the only place rm works in; {hint}")
