"""`glmcpu eval`: how well models predict a text, and how far they are from a reference.

On stdout the tables of eval_table.py, and with --json one object on the last line; all else goes to stderr.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from glmcpu import limits
from glmcpu.cli import terminal
from glmcpu.cli.options import cache_option, debug_option, threads_option, whole_number
from glmcpu.errors import UsageError, printable

if TYPE_CHECKING:
    from glmcpu.cli.eval_table import Row
    from glmcpu.evaluate import Text
    from glmcpu.model import Model


@click.command(name="eval")
@click.argument("models", metavar="[MODEL]...", nargs=-1)
@click.option("--text", required=True, metavar="FILE", help="What to predict: JSONL or plain text, in UTF-8.")
@click.option("--reference", "-r", metavar="MODEL", help="Compare with this model, usually the one in f16 or f32.")
@click.option(
    "--max-tokens",
    callback=whole_number(1, limits.EVAL_TOKENS),
    metavar="N",
    help="Score the first N tokens.  [default: all]",
)
@click.option("--layers", is_flag=True, help="Show the error of each kind of matrix; needs --reference.")
@cache_option
@threads_option
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object on the last line.")
@click.option(
    "--plot",
    "picture",
    metavar="FILE.svg",
    help='Draw the errors of matrices and of tokens; needs --reference and pip install "glmcpu[plot]".',
)
@debug_option
def command(
    models: tuple[str, ...],
    text: str,
    reference: str | None,
    max_tokens: int | None,
    layers: bool,
    cache: str | None,
    threads: int | None,
    as_json: bool,
    picture: str | None,
) -> None:
    """Measure how well models predict a text.

    MODEL is a name in the models folder or a file; without it the only model there is is measured. Of each line
    {"prompt": "..", "response": ".."} of FILE, with "history": [["question", "answer"]] if there is one, the response
    is scored; of any other text the second half of each 512 tokens. With --reference the probabilities of each token
    are compared with that model's, to which --cache does not apply.
    """
    if reference is None and (layers or picture is not None):
        raise UsageError(f"--{'layers' if layers else 'plot'} compares with another model; name it with --reference")
    if picture is not None:
        from glmcpu.cli import plot

        plot.require(picture)
    from glmcpu import evaluate
    from glmcpu.cli import eval_table
    from glmcpu.files import expanded
    from glmcpu.model import Model

    paths = find_models(models, reference)
    loaded = [Model.load(path, threads=threads, cache=cache) for path in paths[reference is not None :]]
    if reference is not None:  # which has the cache that suits it
        loaded.insert(0, Model.load(paths[0], threads=threads))
    tokenizer = evaluate.tokenizer_of(loaded)
    longest = min(min(model.context, model.config.trained_context) for model in loaded)
    words = evaluate.Text(expanded(text), tokenizer, longest, max_tokens)
    rows = _measure(loaded, words, reference is not None, layers or picture is not None, threads)
    eval_table.show(rows, words, reference is not None)
    if picture is not None:
        from glmcpu.cli import plot_eval

        plot_eval.draw(rows[0].name, rows[1:], picture)
    if as_json:
        terminal.write_line(eval_table.to_json(rows, words, reference is not None))


def find_models(models: tuple[str, ...], reference: str | None) -> list[Path]:
    """The files: the reference's first where there is one, then each model's."""
    from glmcpu import store

    first = [] if reference is None else [store.find(reference)]
    return first + ([store.find(model) for model in models] if models else [store.only()])


def _measure(loaded: "list[Model]", text: "Text", compared: bool, matrices: bool, threads: int | None) -> "list[Row]":
    from glmcpu import evaluate
    from glmcpu.cli.eval_table import Row
    from glmcpu.layer_errors import Errors, layer_errors
    from glmcpu.model import describe
    from glmcpu.scoring import summarize

    if not all(model.is_compiled() for model in loaded):
        terminal.note("compiling the kernels for this machine, which is done once and takes some seconds")
    for model in loaded:
        model.compile()
    reference, models = (loaded[0], loaded[1:]) if compared else (None, loaded)
    errors: list[Errors | None] = [None] * len(loaded)
    with terminal.StatusLine() as line:
        tokens = terminal.Counted(line, "tokens")
        measured = evaluate.evaluate(models, text, reference, lambda done, total: tokens("evaluating", done, total))
        if matrices and reference is not None:
            weights = terminal.Counted(line, "weights")
            paths = [model.path for model in models]
            errors[1:] = layer_errors(
                reference.path, paths, text, threads, lambda done, total: weights("matrix by matrix", done, total)
            )
    rows = []
    for name, model, found, error in zip(_names([m.path for m in loaded]), loaded, measured, errors, strict=True):
        about = describe(model.path)
        summary = summarize(found)
        rows.append(Row(name, about.weights, about.bits_per_weight, about.file_bytes, summary, found, error))
    return rows


def _names(paths: list[Path]) -> list[str]:
    """Each file's name without suffix, or its path where another file is called the same."""
    from glmcpu.store import SUFFIX

    names = [path.name.removesuffix(SUFFIX) for path in paths]
    clear = len(set(names)) == len({path.resolve() for path in paths})
    return [printable(name if clear else path) for name, path in zip(names, paths, strict=True)]
