"""`glmcpu eval --task summarise`: answers to the examples of a data set, and how near they are to its own.

On stdout a table, and with --json one object on the last line; all else goes to stderr. The answers are a file that
appears when all of them are there.
"""

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from glmcpu import files, predictions, summaries
from glmcpu.cli import eval_table, terminal
from glmcpu.cli.chat import load_model
from glmcpu.cli.options import make_sampler
from glmcpu.engine import Engine
from glmcpu.errors import UsageError, printable, shown
from glmcpu.summaries import Scorer, Scores
from glmcpu.texts import Columns

if TYPE_CHECKING:
    from glmcpu.model import Model
    from glmcpu.sampling import Sampler

FILE_NAME = "generated_predictions.txt"  # as officially
_HEADS = ("examples", "BLEU-4", "ROUGE-1", "ROUGE-2", "ROUGE-L")


@dataclasses.dataclass(frozen=True)
class Row:
    """A model in the table; `empty` of its answers have no text."""

    name: str
    examples: int
    empty: int
    scores: Scores


def run(
    paths: list[Path],
    text: str,
    loading: dict[str, Any],
    *,
    prompt_column: str,
    response_column: str,
    history_column: str,
    output: str | None,
    max_source_length: int,
    max_target_length: int,
    max_examples: int | None,
    as_json: bool,
    **sampling: Any,
) -> None:
    """What the command does, with its options."""
    # What can be wrong with the request is found before gigabytes are opened.
    sampler, target = make_sampler(**sampling), _target(output, len(paths))
    columns = Columns(prompt_column, response_column, history_column)
    lengths = predictions.Lengths(max_source_length, max_target_length)
    scorer, source = Scorer(), files.expanded(text)
    loaded = [load_model(path, **loading) for path in paths]
    asked = [predictions.read(source, model, columns, lengths, max_examples) for model in loaded]
    with terminal.StatusLine() as line, _predictions_file(target) as file:
        work = _Work(scorer, sampler, terminal.Counted(line, "examples"), sum(map(len, asked)), file)
        measured = [work.measure(*one) for one in zip(eval_table.names(paths), loaded, asked, strict=True)]
    _show(measured, source)
    if as_json:
        terminal.write_line(_to_json(measured, source))


class _Work:
    """The way of all models through the examples."""

    def __init__(
        self, scorer: Scorer, sampler: "Sampler", progress: terminal.Counted, total: int, file: BinaryIO | None
    ) -> None:
        self._scorer, self._sampler, self._file = scorer, sampler, file
        self._progress, self._done, self._total = progress, 0, total

    def measure(self, name: str, model: "Model", asked: list[predictions.Asked]) -> Row:
        """Answers all examples, writes the answers down, and scores them."""
        scores, empty = [], 0
        self._progress("answering", self._done, self._total)
        with Engine(model) as engine:
            for one, answer in zip(asked, predictions.predict(engine, asked, self._sampler), strict=True):
                scores.append(self._scorer.score(answer, one.label))
                empty += not answer.strip()
                if self._file:
                    self._file.write(_encoded(one.label, answer))
                self._done += 1
                self._progress("answering", self._done, self._total)
        return Row(name, len(asked), empty, summaries.mean(scores))


def _target(output: str | None, models: int) -> Path | None:
    """The file of the answers; raises UsageError when there cannot be one."""
    if output is None:
        return None
    if models > 1:
        raise UsageError(f"--output is for the answers of one model, and {models} are named; run them one by one")
    folder = files.expanded(output)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output {shown(folder)}: is a file; name a folder, or one that is to be made")
    return folder / FILE_NAME


def _predictions_file(target: Path | None) -> contextlib.AbstractContextManager[BinaryIO | None]:
    return contextlib.nullcontext() if target is None else files.atomic_write(target)


def _encoded(label: str, answer: str) -> bytes:
    return (json.dumps({"labels": label.strip(), "predict": answer.strip()}, ensure_ascii=False) + "\n").encode()


def _show(rows: list[Row], source: Path) -> None:
    terminal.write_line(f"text       {printable(source.name)}\n")
    terminal.write_line(f"{eval_table.cut('')}{eval_table.heads(*_HEADS)}")
    for row in rows:
        cells = "".join(f"{score:10.2f}" for score in row.scores)
        terminal.write_line(f"{eval_table.cut(row.name)}{row.examples:10,}{cells}")
    for row in rows:
        if row.empty:
            terminal.note(f"{row.name}: {row.empty:,} of {row.examples:,} answers are empty, and count as 0")


def _to_json(rows: list[Row], source: Path) -> str:
    """All numbers as one line, under their official names."""
    models = []
    for row in rows:
        named = {name.replace("_", "-"): round(score, 4) for name, score in row.scores._asdict().items()}
        models.append({"name": row.name, "examples": row.examples, "empty": row.empty, **named})
    return json.dumps({"text": source.name, "task": "summarise", "models": models})
