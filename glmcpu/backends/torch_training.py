"""The torch backend for training: the same operations with gradients, over frozen packed weights.

Sequences are read whole and no cache is kept, so those of a batch are filled up to one length. A prefix that is trained
(P-Tuning) stands before the keys and values of every sequence:

    product       forward decodes the packed weights and forgets them, backward decodes them again: floats of all
                  weights would take six times what the packed ones do, and a frozen weight needs no gradient
    block         with `checkpointing` only the residual before each layer is kept, and the layer is computed again
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from glmcpu.backends import Batch
from glmcpu.backends import _torch_weights as packed
from glmcpu.backends import torch as inference
from glmcpu.backends._torch_attention import rotate
from glmcpu.errors import UsageError
from glmcpu.formats import Weight


class WholeSequence:
    """Stands for the cache of a sequence that is read once, from its beginning, behind a prefix or none."""

    def __init__(self, capacity: int, prefix: int = 0) -> None:
        self.length, self.capacity, self.prefix = 0, capacity, prefix


class Backend(inference.Backend):
    """Operations with gradients.

    prefix   keys and values (L, B, P, H, D) before the B sequences of a batch, or None
    """

    def __init__(self, device: str | None = None, dtype: str | None = None, checkpointing: bool = False) -> None:
        """dtype: as the inference backend's, but bfloat16 on a GPU: gradients fall below what float16 can hold."""
        if dtype is None and inference.device_of(device).type != "cpu":
            dtype = "bf16"
        super().__init__(device=device, dtype=dtype)
        self.checkpointing = checkpointing
        self.prefix: tuple[Tensor, Tensor] | None = None
        self._record = None
        self._tables_of: tuple[Batch, tuple[Tensor, Tensor, Tensor]] | None = None

    def exclusive(self) -> Any:
        """With gradients."""
        return nullcontext()

    def numbers(self, x: Tensor) -> Any:
        """As it is, with its gradients."""
        return x

    def new_cache(self, L: int, H: int, D: int, capacity: int, formats: Mapping[str, str]) -> Any:
        """Keys and values are not kept."""
        return WholeSequence(capacity, 0 if self.prefix is None else self.prefix[0].shape[2])

    def block(self, residual: list[Tensor], compute: Callable[[list[Tensor]], Tensor]) -> Tensor:
        """Computes it, and again in the backward pass where memory is scarce."""
        if not self.checkpointing:
            return compute(residual)
        found: Tensor = checkpoint(lambda x: compute([x]), residual.pop(), use_reentrant=False)
        return found

    def linear(self, x: Tensor, weight: Weight, out: None = None) -> Tensor:
        """In `dtype`; the weight is frozen."""
        found: Tensor = _Product.apply(x.to(self.dtype), weight, self._compiles)
        return found

    def attend(self, qkv: Tensor, layer: int, batch: Batch, heads: int, parts: int) -> Tensor:
        """Of B sequences that are all S tokens long; raises UsageError for others."""
        cos, sin, mask = self._tables(batch)
        B, S = len(mask), cos.shape[1]
        q, k, v = qkv.view(B, S, heads, 3, -1).unbind(3)  # (B, S, H, D)
        q, k = (rotate(t, cos, sin, parts).to(v.dtype) for t in (q, k))
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        if self.prefix is not None:
            before = (t[layer].to(k.dtype).transpose(1, 2) for t in self.prefix)
            k, v = (torch.cat([first, then], 2) for first, then in zip(before, (k, v), strict=True))
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return attended.transpose(1, 2).reshape(B * S, -1)

    def _tables(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """cos and sin (B, S, D/2), and what is visible (B, 1, S, P + S); the same for all layers of a batch."""
        if self._tables_of is None or self._tables_of[0] is not batch:
            lengths = {segment.end - segment.begin for segment in batch.segments}
            if len(lengths) != 1:
                raise UsageError(
                    f"sequences of {min(lengths)} to {max(lengths)} tokens; training reads sequences of one length"
                )
            B, S = len(batch.segments), lengths.pop()
            turns = (packed.tensor_of(t, self.device).view(B, S, -1) for t in (batch.cos, batch.sin))
            visible = np.stack([segment.visible for segment in batch.segments])
            mask = np.arange(S + batch.segments[0].cache.prefix) < visible[:, :, None]
            self._tables_of = batch, (*turns, packed.tensor_of(mask, self.device)[:, None])
        return self._tables_of[1]


class _Product(torch.autograd.Function):  # type: ignore[misc]
    """x @ weight.T + bias, of which only x has a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Weight, compiles: bool) -> Tensor:
        ctx.weight, ctx.compiles = weight, compiles
        return packed.product(x, weight, compiles)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return packed.gradient(grad, ctx.weight, ctx.compiles), None, None
