"""`glmcpu eval`: how well models predict a text, and how far they are from a reference; or how well they summarise.

On stdout the tables of eval_table.py or eval_summaries.py, and with --json one object on the last line; all else goes
to stderr.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from glmcpu import limits
from glmcpu.cli import terminal
from glmcpu.cli.options import (
    LOADING,
    columns_options,
    debug_option,
    loading_options,
    sampling_options,
    whole_number,
)
from glmcpu.errors import UsageError

if TYPE_CHECKING:
    from glmcpu.cli.eval_table import Row
    from glmcpu.evaluate import Text
    from glmcpu.model import Model

PERPLEXITY, SUMMARISE = "perplexity", "summarise"
# Whose an option is; those of neither set are of SUMMARISE.
_OF_PERPLEXITY = {"reference", "max_tokens", "layers", "picture"}
_OF_BOTH = {"models", "task", "text", "as_json", "debug", *LOADING}


@click.command(name="eval")
@click.argument("models", metavar="[MODEL]...", nargs=-1)
@click.option("--text", required=True, metavar="FILE", help="What to predict: JSONL or plain text, in UTF-8.")
@click.option(
    "--task",
    type=click.Choice([PERPLEXITY, SUMMARISE]),
    default=PERPLEXITY,
    show_default=True,
    help="How likely the text is to a model, or how near its own answers come.",
)
@click.option("--reference", "-r", metavar="MODEL", help="Compare with this model, usually the one in f16 or f32.")
@click.option(
    "--max-tokens",
    callback=whole_number(1, limits.EVAL_TOKENS),
    metavar="N",
    help="Score the first N tokens.  [default: all]",
)
@click.option("--layers", is_flag=True, help="Show the error of each kind of matrix; needs --reference.")
@click.option(
    "--plot",
    "picture",
    metavar="FILE.svg",
    help='Draw the errors of matrices and of tokens; needs --reference and pip install "glmcpu[plot]".',
)
@columns_options
@click.option("--output", "-o", metavar="FOLDER", help="Write generated_predictions.txt there: labels and answers.")
@click.option(
    "--max-source-length",
    default=64,
    show_default=True,
    type=str,
    callback=whole_number(3, limits.CONTEXT),
    metavar="N",
    help="Tokens of a prompt, two special ones included; what is longer is cut.",
)
@click.option(
    "--max-target-length",
    default=64,
    show_default=True,
    type=str,
    callback=whole_number(3, limits.CONTEXT),
    metavar="N",
    help="Tokens of a response, two special ones included; what is longer is cut.",
)
@click.option("--max-examples", callback=whole_number(1), metavar="N", help="Use the first N.  [default: all]")
@sampling_options
@loading_options
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object on the last line.")
@debug_option
def command(
    models: tuple[str, ...],
    text: str,
    task: str,
    as_json: bool,
    loading: dict[str, Any],
    **own: Any,
) -> None:
    """Measure how well models predict a text.

    MODEL is a name in the models folder or a file; without it the only model there is is measured. Of each line
    {"prompt": "..", "response": ".."} of FILE, with "history": [["question", "answer"]] if there is one, the response
    is scored; of any other text the second half of each 512 tokens. With --reference the probabilities of each token
    are compared with that model's, to which --adapter and --cache do not apply; --layers and --plot
    compare the weights alone, whatever the adapter or the backend.

    With --task summarise the model answers each prompt, as ptuning/main.py of ChatGLM-6B does, and the answers are
    compared with the responses: BLEU-4, ROUGE-1, ROUGE-2 and ROUGE-L. It needs pip install "glmcpu[tune]". The options
    from --prompt-column to --seed are for this task, those from --reference to --plot for the other. With --seed N line
    n is answered with the seed N + n.
    """
    _check_options(task)
    of_task = {name: value for name, value in own.items() if (name in _OF_PERPLEXITY) == (task == PERPLEXITY)}
    if task == PERPLEXITY:
        _perplexity(models, text, loading, as_json=as_json, **of_task)
    else:
        from glmcpu.cli import eval_summaries

        paths = find_models(models, None)
        eval_summaries.run(paths, text, loading, as_json=as_json, **of_task)


def _check_options(task: str) -> None:
    """Raises UsageError for an option on the command line that is of the other task."""
    context = click.get_current_context()
    for option in context.command.params:
        name = option.name or ""
        given = context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        if given and name not in _OF_BOTH and (name in _OF_PERPLEXITY) != (task == PERPLEXITY):
            other = SUMMARISE if task == PERPLEXITY else PERPLEXITY
            raise UsageError(
                f"{option.opts[0]} is for --task {other}, and the task is {task}; leave out one of the two"
            )


def _perplexity(
    models: tuple[str, ...],
    text: str,
    loading: dict[str, Any],
    *,
    reference: str | None,
    max_tokens: int | None,
    layers: bool,
    picture: str | None,
    as_json: bool,
) -> None:
    if reference is None and (layers or picture is not None):
        raise UsageError(f"--{'layers' if layers else 'plot'} compares with another model; name it with --reference")
    if picture is not None:
        from glmcpu.cli import plot

        plot.require(picture)
    from glmcpu import evaluate, files
    from glmcpu.cli import eval_table
    from glmcpu.cli.chat import load_model

    source, paths = files.expanded(text), find_models(models, reference)
    files.open_regular(source).close()  # what is missing is found before gigabytes are opened
    loaded = [load_model(path, **loading) for path in paths[reference is not None :]]
    if reference is not None:  # which has the cache that suits it
        loaded.insert(0, load_model(paths[0], **{**loading, "cache": None, "adapter": None, "lora_alpha": None}))
    tokenizer = evaluate.tokenizer_of(loaded)
    longest = min(min(model.context, model.config.trained_context) for model in loaded)
    words = evaluate.Text(source, tokenizer, longest, max_tokens)
    rows = _measure(loaded, words, reference is not None, layers or picture is not None, loading["threads"])
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
    from glmcpu.cli.eval_table import Row, names
    from glmcpu.layer_errors import Errors, layer_errors
    from glmcpu.model import describe
    from glmcpu.scoring import summarize

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
    for name, model, found, error in zip(names([m.path for m in loaded]), loaded, measured, errors, strict=True):
        about = describe(model.path)
        summary = summarize(found)
        rows.append(Row(name, about.weights, about.bits_per_weight, about.file_bytes, summary, found, error))
    return rows
