"""What is trained: the prefix encoder of P-Tuning v2 (Liu et al. 2021), and the official file it is saved as.

    embedding (P, 2 L C)                                            row p: keys and values of all layers for position p
    with projection: embedding (P, C) -> Linear (C, C) -> tanh -> Linear (C, 2 L C)

The official PrefixEncoder of THUDM/chatglm-6b, its initial values (those of torch) and its dropout of a tenth of all
numbers while it is trained, drawn for each sequence.
"""

from typing import Any

import torch
from torch import Tensor, nn

from glmcpu.models.chatglm import Config

NAMES = "transformer.prefix_encoder."
DROPOUT = 0.1


class PrefixEncoder(nn.Module):  # type: ignore[misc]
    """Keys and values of `tokens` positions for a model; float32."""

    def __init__(self, config: Config, tokens: int, projection: bool, seed: int) -> None:
        super().__init__()
        C, wide = config.channels, 2 * config.layers * config.channels
        self._shape = tokens, 2 * config.layers, config.heads, C // config.heads
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(tokens, C if projection else wide)
            self.trans = nn.Sequential(nn.Linear(C, C), nn.Tanh(), nn.Linear(C, wide)) if projection else None

    def forward(self, sequences: int = 1, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values (L, sequences, P, H, D); with a generator some of them are dropped."""
        rows = self.embedding.weight
        if self.trans is not None:
            rows = self.trans(rows)
        both = rows.view(self._shape).transpose(0, 1)[:, None].expand(-1, sequences, -1, -1, -1)  # (2 L, B, P, H, D)
        if generator is not None:
            kept = torch.rand(both.shape, generator=generator, device=both.device) >= DROPOUT
            both = both * kept / (1 - DROPOUT)
        return both[0::2], both[1::2]

    def official(self) -> dict[str, Tensor]:
        """Tensors under their official names."""
        return {f"{NAMES}{name}": value.detach().cpu() for name, value in self.state_dict().items()}


def configuration(official: dict[str, Any], tokens: int, projection: bool) -> dict[str, Any]:
    """config.json beside it: the base model's, and what the prefix is."""
    return {**official, "pre_seq_len": tokens, "prefix_projection": projection}
