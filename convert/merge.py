"""LoRA taken up into the weights while they are read: W + B A, whatever the result is rounded to.

The sum over the rank goes in its order, one product after another in float32, and is added to the weight at the end.
So the same adapter gives the same bits for any size of the slabs, any number of threads and on any machine, which no
matrix product promises. It costs r passes over some rows that stay in the processor's cache: 4 s in all for rank 8 on
the fused matrices of ChatGLM-6B.

A merged weight is another weight: the row scales of an official int8 or int4 checkpoint are of no use to it, and it is
rounded anew. Beside the weights (glmcpu chat --adapter) an adapter is kept in half precision at least, and costs a
little at every token.
"""

import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glmcpu import adapters, files
from glmcpu.adapters import LowRank
from glmcpu.errors import Notice, UsageError, printable, shown

from .digests import digests_of
from .origin import Origin

_BLOCK_BYTES = 256 << 10
_GENERIC = ("adapter_model", "pytorch_model", "model")  # what trainers call every file


def merged(weight: NDArray[np.float32], low_rank: LowRank, begin: int) -> NDArray[np.float32]:
    """Rows begin.. of W (o, I) and of what is added to them, in memory of their own."""
    o, I = weight.shape
    up = low_rank.up[begin : begin + o]
    total = np.zeros((o, I), np.float32)
    rows = max(1, _BLOCK_BYTES // (4 * I))
    product = np.empty((rows, I), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # the caller looks for infinity
        for first in range(0, o, rows):
            block = total[first : first + rows]
            for r in range(low_rank.rank):
                block += np.multiply(up[first : first + rows, r, None], low_rank.down[r], out=product[: len(block)])
            block += weight[first : first + rows]
    return total


def check(adapter: object, lora_alpha: float | None) -> None:
    """Raises UsageError for an alpha of nothing."""
    if adapter is None and lora_alpha is not None:
        raise UsageError(f"--lora-alpha {printable(lora_alpha, 40)} is for LoRA; name the adapter with --adapter PATH")


def label(adapter: str | os.PathLike[str]) -> str:
    """The adapter's part of the default name of the result: its folder, or its file if that has a name of its own."""
    path = Path(os.path.abspath(files.expanded(os.fspath(adapter))))
    if path.suffix not in (".safetensors", ".bin", ".pt", ".pth"):
        return path.name
    return path.parent.name if path.stem in _GENERIC else path.stem


def with_adapter(origin: Origin, path: str | os.PathLike[str], lora_alpha: float | None) -> Origin:
    """The model with a LoRA adapter in its weights; tells the user what was assumed.

    Raises UsageError for a P-Tuning prefix, and what adapters.read does. `about` gets, under "adapters", what has been
    merged: in order, as a packed model can take up one after another.
    """
    adapter = adapters.read_mergeable(path, origin.config, lora_alpha=lora_alpha)
    for note in adapter.notes:
        warnings.warn(f"{shown(adapter.path)}: {note}", Notice, stacklevel=3)
    record: dict[str, Any] = {"name": printable(label(path)), "about": adapter.about}
    if lora_alpha is not None:
        record["lora_alpha"] = lora_alpha
    record["files"] = digests_of(adapter.files)
    before = origin.about.get("adapters")
    sources = {ours: replace(source, low_rank=adapter.low_rank.get(ours)) for ours, source in origin.sources.items()}
    about = {**origin.about, "adapters": [*(before if isinstance(before, list) else []), record]}
    return replace(origin, sources=sources, about=about)
