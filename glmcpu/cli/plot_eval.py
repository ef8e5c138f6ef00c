"""The picture of `glmcpu eval --plot`: where each model differs from the reference, and by how much.

Above, a map for each model: the error of each matrix, layers from left to right, embedding and lm_head apart. Below,
for each KL divergence the share of the tokens that have more. matplotlib is imported only here, when asked for.
"""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from glmcpu import files

if TYPE_CHECKING:
    from glmcpu.cli.eval_table import Row

SMALLEST = 1e-10  # of an error or a KL divergence, which may be 0; drawn on logarithmic scales
_POINTS = 400  # of a line
_COLORS = ("#2463ab", "#c4572b", "#3b8a4b", "#8a4f9e", "#b08a1a", "#4aa3b5", "#777777")


def draw(reference: str, rows: "Sequence[Row]", target: str) -> None:
    """Writes the picture of models that were compared with `reference` as SVG; raises MachineError when that fails."""
    from matplotlib import rc_context
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    maps = [_map(row) for row in rows]
    known = np.concatenate([values[np.isfinite(values) & (values > 0)] for _, _, *both in maps for values in both])
    low, high = max(SMALLEST, float(known.min(initial=1))), float(known.max(initial=10 * SMALLEST))
    # Text stays text, and the same numbers give the same bytes.
    settings = {"svg.fonttype": "none", "svg.hashsalt": "glmcpu", "font.size": 9, "axes.titlesize": 10}
    with rc_context(settings):
        heights = [1.0] * len(rows) + [2.4]
        figure = Figure(figsize=(10, 1.3 * sum(heights) + 0.8), layout="constrained")
        grid = figure.add_gridspec(len(rows) + 1, 2, height_ratios=heights, width_ratios=[12, 1])
        norm = LogNorm(min(low, high / 10), high)
        drawn = None
        for n, (row, (kinds, apart, layers, others)) in enumerate(zip(rows, maps, strict=True)):
            left, right = figure.add_subplot(grid[n, 0]), figure.add_subplot(grid[n, 1])
            left.set_title(f"{_plain(row.name)}: relative error of each matrix's products", loc="left")
            drawn = _heat(left, layers, kinds, norm)
            _heat(right, others, apart, norm)
            right.yaxis.tick_right()
            right.set_xticks([])
            left.set_xlabel("layer")
        if drawn is not None:
            figure.colorbar(drawn, ax=figure.axes, shrink=0.6, pad=0.02)
        _survival(figure.add_subplot(grid[len(rows), :]), rows)
        figure.suptitle(f"difference from {_plain(reference)}")
        picture = io.BytesIO()
        figure.savefig(picture, format="svg", metadata={"Date": None})
    with files.atomic_write(target) as file:
        file.write(picture.getvalue())


def _map(row: "Row") -> tuple[list[str], list[str], NDArray[np.float64], NDArray[np.float64]]:
    """The kinds of a layer's matrices, the matrices apart, and the errors (kinds, layers) and (apart, 1)."""
    errors = row.errors or {}
    inside = [name.split(".") for name in errors if name.startswith("layers.")]
    kinds = list(dict.fromkeys(kind for _, _, kind in inside))
    layers = max((int(n) for _, n, _ in inside), default=-1) + 1
    table = np.array([[errors[f"layers.{n}.{kind}"] for n in range(layers)] for kind in kinds])
    apart = [name for name in errors if not name.startswith("layers.")]
    return kinds, apart, table, np.array([[errors[name]] for name in apart])


def _heat(axes: Any, values: NDArray[np.float64], names: Sequence[str], norm: Any) -> Any:
    """Squares coloured by value, rows named; what is 0 has the colour of the least."""
    drawn = axes.pcolormesh(np.maximum(values, norm.vmin), norm=norm, cmap="viridis", edgecolors="white", linewidth=0.3)
    axes.set_yticks(np.arange(len(names)) + 0.5, names)
    axes.set_xticks(np.arange(0, values.shape[1], max(1, values.shape[1] // 14)) + 0.5)
    axes.set_xticklabels([f"{place - 0.5:.0f}" for place in axes.get_xticks()])
    axes.tick_params(length=0)
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)
    return drawn


def _survival(axes: Any, rows: "Sequence[Row]") -> None:
    axes.set(
        title="KL divergence by token", xlabel="KL divergence, nats", ylabel="share of tokens with more", xscale="log"
    )
    for n, row in enumerate(rows):
        shares = np.linspace(0, 1, min(_POINTS, len(row.tokens.kl) + 1))
        values = np.maximum(np.quantile(row.tokens.kl, shares), SMALLEST)
        axes.plot(
            values,
            1 - shares,
            color=_COLORS[n % len(_COLORS)],
            label=f"{_plain(row.name)} ({row.bits_per_weight:.2f} bits)",
        )
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


def _plain(name: str) -> str:
    """A name as it is: between dollar signs matplotlib would read a formula."""
    return name.replace("$", r"\$")
