"""The picture of `glmcpu bench --plot`: decode by context beside prefill by length, each with the machine's ceiling.

matplotlib is imported only here, and only when asked for.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmcpu import files
from glmcpu.errors import UsageError, printable, shown

if TYPE_CHECKING:
    from glmcpu.bench import Run

_COLORS = ("#2463ab", "#c4572b", "#3b8a4b", "#8a4f9e", "#b08a1a")
_MARKERS = "os^Dv"


def require(target: str) -> None:
    """Raises UsageError, before anything is measured, when the picture could not be made."""
    if Path(target).is_dir():
        raise UsageError(f"--plot {shown(target)}: is a folder; name a file in it, such as picture.svg")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UsageError('--plot needs matplotlib; get it with: pip install "glmcpu[plot]"') from error


def draw(runs: "Sequence[Run]", target: str) -> None:
    """Writes the picture of one or several runs as SVG; raises MachineError when that fails."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # Text stays text, and the same run gives the same bytes.
    settings = {"svg.fonttype": "none", "svg.hashsalt": "glmcpu", "font.size": 10, "axes.titlesize": 11}
    with rc_context(settings):
        figure = Figure(figsize=(10, 5), layout="constrained")
        left, right = figure.subplots(1, 2)
        _decode(left, runs)
        _prefill(right, runs)
        first = runs[0]
        figure.suptitle(printable(f"{first.model} on {first.cpu}, {first.isa}, {first.threads} threads"), fontsize=12)
        picture = io.BytesIO()
        figure.savefig(picture, format="svg", metadata={"Date": None})
    with files.atomic_write(target) as file:
        file.write(picture.getvalue())


def _decode(axes: Any, runs: "Sequence[Run]") -> None:
    axes.set(title="decode: bound by reading memory", xlabel="tokens in context", ylabel="tokens/s, all sequences")
    for run, color in zip(runs, _repeated(_COLORS, len(runs)), strict=True):
        batches = sorted({row.batch for row in run.decode})
        for batch, marker in zip(batches, _repeated(_MARKERS, len(batches)), strict=True):
            rows = [row for row in run.decode if row.batch == batch]
            _line(axes, [r.context for r in rows], rows, color, marker, f"{run.format}, {_sequences(batch)}")
    _finish(axes)


def _prefill(axes: Any, runs: "Sequence[Run]") -> None:
    axes.set(title="prefill: bound by arithmetic", xlabel="tokens in prompt", ylabel="tokens/s")
    for run, color in zip(runs, _repeated(_COLORS, len(runs)), strict=True):
        _line(axes, [r.tokens for r in run.prefill], run.prefill, color, "o", run.format)
    _finish(axes)


def _line(axes: Any, lengths: list[int], rows: Sequence[Any], color: str, marker: str, label: str) -> None:
    """A measured line with its spread, and dashed what the ceiling allows."""
    if not rows:
        return
    speeds = [row.tok_per_s for row in rows]
    below = [speed - row.spread[0] for speed, row in zip(speeds, rows, strict=True)]
    above = [row.spread[1] - speed for speed, row in zip(speeds, rows, strict=True)]
    axes.errorbar(lengths, speeds, yerr=[below, above], color=color, marker=marker, capsize=3, label=label)
    ceilings = [row.tok_per_s / row.of_ceiling for row in rows]
    axes.plot(lengths, ceilings, color=color, marker=marker, markersize=3, linestyle="--", linewidth=1, alpha=0.6)


def _finish(axes: Any) -> None:
    if axes.lines:
        axes.plot([], [], color="gray", linestyle="--", linewidth=1, label="what the ceiling allows")
        axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _sequences(batch: int) -> str:
    return "one sequence" if batch == 1 else f"{batch} sequences together"


def _repeated(choices: Sequence[str], n: int) -> list[str]:
    return [choices[i % len(choices)] for i in range(n)]
