"""The torch backend: the same operations with gradients, so that a model is trained by the forward it will run with.

Arrays are torch tensors on one device. Whole sequences are read at once and no cache is kept; the weights are float32
tensors that the caller owns (their formats hold "values") and may require gradients. Matrix products and attention can
run in bfloat16, which is several times faster where the processor or GPU has instructions for it; the residual, the
norms and the weights stay float32. Needs torch, which is not among glmcpu's requirements.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from glmcpu.backends import Batch
from glmcpu.errors import UsageError
from glmcpu.formats import Weight


class NoCache:
    """Stands for the cache of a sequence that is read once, from its beginning."""

    def __init__(self, capacity: int) -> None:
        self.length, self.capacity = 0, capacity


class Backend:
    """Operations on `device`; matrix products and attention in `dtype`."""

    def __init__(self, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.device, self.dtype = torch.device(device), dtype
        self._known: tuple[Batch, tuple[Tensor, Tensor, Tensor]] | None = None

    def is_compiled(self, formats: Mapping[str, str]) -> bool:
        """Nothing is compiled."""
        return True

    def exclusive(self) -> AbstractContextManager[object]:
        """torch needs no protection."""
        return nullcontext()

    def repeat(self, x: Tensor, batch: Batch, compute: Callable[[Tensor, Batch], Tensor]) -> Tensor:
        """Computes it anew."""
        return compute(x, batch)

    def finish(self) -> None:
        """Everything is done, or will be in order."""

    def new_cache(self, L: int, H: int, D: int, capacity: int, formats: Mapping[str, str]) -> NoCache:
        """Keys and values are not kept."""
        return NoCache(capacity)

    def rows(self, weight: Weight, ids: NDArray[np.int64]) -> Tensor:
        """Rows of the embedding table."""
        return functional.embedding(torch.from_numpy(ids).to(self.device), _values(weight))

    def take(self, x: Tensor, which: NDArray[np.int64]) -> Tensor:
        """Some rows."""
        return x.index_select(0, torch.from_numpy(which).to(self.device))

    def in_slabs(self, h: Tensor, O: int, compute: Callable[[Tensor, None], Tensor]) -> Tensor:
        """All tokens at once."""
        return compute(h, None)

    def linear(self, x: Tensor, weight: Weight, out: None = None) -> Tensor:
        """In `dtype`, as its result is; the bias of an embedding is none."""
        bias: Any = weight.bias
        bias = bias.to(self.dtype) if isinstance(bias, Tensor) else None
        return functional.linear(x.to(self.dtype), _values(weight).to(self.dtype), bias)

    def layer_norm(self, x: Tensor, scale: Tensor, shift: Tensor, epsilon: float) -> Tensor:
        """In float32."""
        return functional.layer_norm(x.float(), scale.shape, scale, shift, epsilon)

    def gelu(self, x: Tensor) -> Tensor:
        """The tanh form."""
        return functional.gelu(x, approximate="tanh")

    def scale_add(self, h: Tensor, alpha: float, y: Tensor) -> Tensor:
        """In float32."""
        return torch.add(y.float(), h, alpha=alpha)

    def attend(self, qkv: Tensor, layer: int, batch: Batch, heads: int, parts: int) -> Tensor:
        """Of B sequences that are all S tokens long; raises UsageError for others."""
        cos, sin, hidden = self._tables(batch, parts)
        B, _, S = hidden.shape[0], 1, hidden.shape[-1]
        split = qkv.view(B, S, heads, 3, -1).permute(3, 0, 2, 1, 4)  # (3, B, H, S, D)
        low, high = split[:2].unflatten(-1, (parts, 2, -1)).unbind(-2)
        q, k = torch.stack([low * cos - high * sin, high * cos + low * sin], dim=-2).flatten(-3)
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + hidden
        return (scores.softmax(-1) @ split[2]).transpose(1, 2).reshape(B * S, -1)

    def _tables(self, batch: Batch, parts: int) -> tuple[Tensor, Tensor, Tensor]:
        """cos and sin (B, 1, S, parts, D/(2 parts)), and 0 or -inf (B, 1, S, S); the same for all layers of a batch."""
        if self._known is None or self._known[0] is not batch:
            lengths = {segment.end - segment.begin for segment in batch.segments}
            if len(lengths) != 1:
                raise UsageError(
                    f"sequences of {min(lengths)} to {max(lengths)} tokens; the torch backend needs one length"
                )
            B, S = len(batch.segments), lengths.pop()
            turns = [torch.from_numpy(t).to(self.device, self.dtype) for t in (batch.cos, batch.sin)]
            visible = torch.from_numpy(np.stack([segment.visible for segment in batch.segments])).to(self.device)
            hidden = torch.zeros(B, 1, S, S, dtype=self.dtype, device=self.device)
            hidden.masked_fill_((torch.arange(S, device=self.device) >= visible[:, :, None])[:, None], float("-inf"))
            cos, sin = (turn.view(B, 1, S, parts, -1) for turn in turns)
            self._known = batch, (cos, sin, hidden)
        return self._known[1]


def _values(weight: Weight) -> Tensor:
    values: Tensor = weight.arrays["values"]
    return values
