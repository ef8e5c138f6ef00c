"""The numbers of `glmcpu eval`: tables for a person, and one line of JSON.

The error of each matrix is shown by kind, the mean over the layers; in the JSON it stands for each one.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from glmcpu.cli import terminal
from glmcpu.errors import printable
from glmcpu.evaluate import Text
from glmcpu.layer_errors import Errors
from glmcpu.scoring import Summary, Tokens
from glmcpu.store import SUFFIX

_NAME_CHARS = 26


@dataclasses.dataclass(frozen=True)
class Row:
    """A model in the comparison."""

    name: str
    weights: str
    bits_per_weight: float
    file_bytes: int
    summary: Summary
    tokens: Tokens
    errors: Errors | None  # where they were asked for


def names(paths: list[Path]) -> list[str]:
    """Each file's name without suffix, or its path where another file is called the same."""
    short = [path.name.removesuffix(SUFFIX) for path in paths]
    clear = len(set(short)) == len({path.resolve() for path in paths})
    return [printable(name if clear else path) for name, path in zip(short, paths, strict=True)]


def show(rows: list[Row], text: Text, compared: bool) -> None:
    """Writes the tables; `compared`: the first row is the reference."""
    write = terminal.write_line
    write(f"text       {printable(text.path.name)}: {text.items:,} items, {text.scored:,} tokens scored")
    if compared:
        write(f"reference  {rows[0].name}")
    write(f"\n{'':{_NAME_CHARS}}{'weights':>11}{'bits':>7}{'size':>13}{'perplexity ± s.e.':>22}{'seconds':>10}")
    for row in rows:
        found = row.summary
        write(
            f"{cut(row.name)}{row.weights:>11}{row.bits_per_weight:7.2f}{terminal.size(row.file_bytes):>13}"
            f"{_with_error(found.perplexity, found.perplexity_se):>22}{found.seconds:10.1f}"
        )
    if not compared:
        return
    write(f"\n{cut('KL divergence by token')}{'mean ± s.e.':>20}{heads('median', '99 %', 'max', 'top-1', 'change')}")
    for row in rows[1:]:
        if kl := row.summary.kl:
            cells = "".join(f"{value:10.2e}" for value in (kl.median, kl.p99, kl.max))
            mean = f"{kl.mean:.2e} ± {'?' if kl.se is None else f'{kl.se:.0e}'}"
            write(f"{cut(row.name)}{mean:>20}{cells}{kl.top1:10.2%}{kl.largest_change:10.4f}")
    if any(row.errors for row in rows):
        _show_errors(rows[1:])


def _show_errors(rows: list[Row]) -> None:
    kinds = list(dict.fromkeys(kind_of(name) for row in rows for name in row.errors or {}))
    terminal.write_line(f"\n{cut('error of the products')}{''.join(f'{kind:>14.13}' for kind in kinds)}")
    for row in rows:
        errors = row.errors or {}
        of_kind = [[error for name, error in errors.items() if kind_of(name) == kind] for kind in kinds]
        cells = "".join(f"{sum(some) / len(some):14.2e}" for some in of_kind if some)
        terminal.write_line(f"{cut(row.name)}{cells}")


def kind_of(matrix: str) -> str:
    """ "layers.7.qkv" -> "qkv"; a matrix that is in no layer is its own kind."""
    return matrix.rpartition(".")[2]


def to_json(rows: list[Row], text: Text, compared: bool) -> str:
    """All numbers as one line; what is unknown or infinite is null."""
    tables = [_table(row) for row in rows]
    whole = {
        "text": text.path.name,
        "items": text.items,
        "tokens": text.scored,
        "reference": tables[0] if compared else None,
        "models": tables[compared:],
    }
    return json.dumps(_finite(whole), allow_nan=False)


def _table(row: Row) -> dict[str, Any]:
    found = {key: getattr(row, key) for key in ("name", "weights", "bits_per_weight", "file_bytes")}
    found |= dataclasses.asdict(row.summary)
    return found if row.errors is None else {**found, "errors": row.errors}


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value


def cut(name: str) -> str:
    """A name as the first column of a table."""
    return f"{name if len(name) <= _NAME_CHARS else name[: _NAME_CHARS - 1] + '…':{_NAME_CHARS}}"


def _with_error(value: float, error: float | None) -> str:
    """A value to the second digit of its standard error."""
    if error is None or not 1e-4 < error < value < 1e6:
        return f"{value:.4g} ± {'?' if error is None else f'{error:.2g}'}"
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:,.{decimals}f} ± {error:,.{decimals}f}"


def heads(*names: str) -> str:
    """The heads of columns of numbers."""
    return "".join(f"{name:>10}" for name in names)
