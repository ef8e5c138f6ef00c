"""The picture of a training: its loss and the validation loss, step by step."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glmcpu import files


def draw(log: Sequence[dict[str, Any]], target: Path) -> None:
    """Writes the picture of a training's log (tuning/state.py) as SVG; raises MachineError when that fails."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "glmcpu", "font.size": 10}):
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        axes.set(xlabel="step", ylabel="loss, nats a token")
        axes.plot([line["step"] for line in log], [line["loss"] for line in log], color="#2463ab", label="training")
        seen = [line for line in log if "validation_loss" in line]
        if seen:
            losses = [line["validation_loss"] for line in seen]
            axes.plot([line["step"] for line in seen], losses, color="#c4572b", marker="o", label="validation")
        axes.legend(frameon=False)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        picture = io.BytesIO()
        figure.savefig(picture, format="svg", metadata={"Date": None})
    with files.atomic_write(target) as file:
        file.write(picture.getvalue())
