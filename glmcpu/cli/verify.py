"""`glmcpu verify`: every checksum of a packed model file."""

import click

from glmcpu.cli import terminal
from glmcpu.cli.options import debug_option
from glmcpu.errors import printable


@click.command(name="verify")
@click.argument("file")
@debug_option
def command(file: str) -> None:
    """Check every tensor of a model.

    All of FILE, a path or a name in the models folder, is read and compared with its checksums.
    """
    from glmcpu import store
    from glmcpu.model import verify

    path = store.find(file)
    with terminal.StatusLine() as line:
        show = terminal.ByteProgress(line)
        verify(path, progress=lambda done, total: show("verify", done, total))
    terminal.write_line(f"{printable(path, 300)}: all checksums match, {terminal.size(path.stat().st_size)}")
