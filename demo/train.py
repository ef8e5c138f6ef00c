"""Training: the product's own forward, given the torch backend, and AdamW.

Examples are drawn without end; those of similar length make a batch of about TOKENS tokens. The loss is that of the
answer's tokens and the end token behind them, given everything before, as ChatGLM-6B was fine-tuned. bfloat16 is used
where the processor multiplies it in hardware (AMX) or there is a GPU; the weights are float32.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from glmcpu.backends import torch_training
from glmcpu.backends.torch_training import WholeSequence
from glmcpu.formats import Weight
from glmcpu.models import Part, chatglm
from glmcpu.models.chatglm import ChatGLM, Config

TOKENS = 4096  # of a batch
MUON_RATE, ADAM_RATE, WARM_UP, DECAY = 3e-3, 1.2e-3, 200, 0.02
CLIP = 1.0
NORM = 0.35  # the scales of the layers' norms at the beginning
_SCORED = 256  # the scored tokens of a batch are filled up to a multiple of this

Ids = tuple[list[int], int]  # a sequence and where its answer begins


@dataclass
class Weights:
    """A store of float32 tensors that are trained; `formats` is what a model asks of a store."""

    matrices: dict[str, Tensor]
    vectors: dict[str, Tensor]

    @property
    def formats(self) -> dict[str, str]:
        return dict.fromkeys(self.matrices, "f32")

    def weight(self, name: str, O: int, I: int) -> Weight:
        arrays: Any = {"values": self.matrices[name]}
        bias: Any = self.vectors.get(f"{name}.bias")
        return Weight("f32", arrays, bias, O, I, name)

    def vector(self, name: str, n: int) -> Any:
        return self.vectors[name]

    def tensors(self) -> list[Tensor]:
        return [*self.matrices.values(), *self.vectors.values()]


def initial(config: Config, seed: int, device: str) -> Weights:
    """Random weights.

    The residual is 7.5 times the normed input whatever the depth, which would drown what the branches add: so the norms
    begin small and the matrices that read them large, and the branches' last matrices begin twice as large as usual.
    """
    generator = torch.Generator().manual_seed(seed)
    matrices, vectors = {}, {}
    for name, (O, I) in chatglm.matrices(config).items():
        gain = 2 if name.endswith(("attention_out", "mlp_down")) else 1 / NORM
        spread = 0.05 if name == "embedding" else gain / I**0.5
        matrices[name] = torch.randn(O, I, generator=generator) * spread
    for name, n in chatglm.vectors(config).items():
        begin = 0.0 if name.endswith(".shift") else NORM if name.startswith("layers.") else 1.0
        vectors[name] = torch.full((n,), begin)
    return Weights(
        {name: tensor.to(device).requires_grad_() for name, tensor in matrices.items()},
        {name: tensor.to(device).requires_grad_() for name, tensor in vectors.items()},
    )


class Backend(torch_training.Backend):
    """Weights are float32 tensors (O, I) that are trained; products are in bfloat16 where that is fast."""

    def __init__(self, device: str = "cpu", dtype: str | None = None) -> None:
        fast = device != "cpu" or torch.cpu._is_amx_tile_supported()
        super().__init__(device, dtype or ("bf16" if fast else "f32"))

    def keep(self, weight: Weight) -> Weight:
        return weight

    def keep_vector(self, values: Any) -> Tensor:
        return values

    def rows(self, weight: Weight, ids: NDArray[np.int64]) -> Tensor:
        return functional.embedding(torch.from_numpy(ids).to(self.device), self._values(weight))

    def linear(self, x: Tensor, weight: Weight, out: None = None) -> Tensor:
        bias: Any = weight.bias  # of an embedding None
        values, bias = self._values(weight).to(self.dtype), None if bias is None else bias.to(self.dtype)
        return functional.linear(x.to(self.dtype), values, bias)

    @staticmethod
    def _values(weight: Weight) -> Tensor:
        values: Any = weight.arrays["values"]
        return values


def loss(model: ChatGLM, batch: list[Ids], device: str) -> Tensor:
    """Mean negative log-likelihood of the answers' tokens. Shorter sequences are filled up; nothing sees what fills.

    A token counts by the square root of its answer's length, inversely: else a few long answers, learnt by heart, would
    drown a sum's one digit. Only few shapes occur, since libraries prepare matrix products anew for each.
    """
    S = _width(max(len(ids) for ids, _ in batch))
    parts: Any = [Part([*ids, *[model.config.pad] * (S - len(ids))], WholeSequence(S)) for ids, _ in batch]  # type: ignore[arg-type]
    wanted = np.concatenate([b * S + np.arange(answer - 1, len(ids) - 1) for b, (ids, answer) in enumerate(batch)])
    targets = np.concatenate([ids[answer:] for ids, answer in batch])
    missing = -len(wanted) % _SCORED
    scores: Any = model.forward(parts, wanted=np.pad(wanted, (0, missing)))
    right = torch.from_numpy(np.pad(targets, (0, missing), constant_values=-1)).to(device)
    weights = np.concatenate([np.full(len(ids) - answer, (len(ids) - answer) ** -0.5) for ids, answer in batch])
    share = torch.from_numpy(np.pad(weights / weights.sum(), (0, missing)).astype(np.float32)).to(device)
    return functional.cross_entropy(scores.float(), right, ignore_index=-1, reduction="none") @ share


def batches(examples: Iterator[Ids]) -> Iterator[list[Ids]]:
    """Batches of TOKENS tokens, each of sequences of one width."""
    waiting: defaultdict[int, list[Ids]] = defaultdict(list)
    for example in examples:
        width = _width(len(example[0]))
        waiting[width].append(example)
        if len(waiting[width]) == max(1, TOKENS // width):
            yield waiting.pop(width)


def _width(length: int) -> int:
    """The next multiple of 16, of 64 for long sequences."""
    step = 16 if length <= 128 else 64
    return -(-length // step) * step


def train(
    config: Config,
    examples: Iterator[Ids],
    *,
    steps: int,
    seed: int,
    device: str,
    report: Callable[[int, float, float], None],
) -> Weights:
    """Trains for so many steps; report(step, mean loss of late, seconds so far)."""
    weights = initial(config, seed, device)
    model = ChatGLM(config, weights, Backend(device))  # type: ignore[arg-type]
    optimizers = _optimizers(weights)
    begun, of_late = time.monotonic(), 0.0
    stream = batches(examples)
    for step in range(steps):
        value = loss(model, next(stream), device)
        value.backward()
        torch.nn.utils.clip_grad_norm_(weights.tensors(), CLIP)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate(step, steps)
            optimizer.step()
            optimizer.zero_grad()
        current = float(value.detach())
        of_late = current if step == 0 else 0.98 * of_late + 0.02 * current
        report(step + 1, of_late, time.monotonic() - begun)
    return weights


def _optimizers(weights: Weights) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, which learns in half as many steps here, and AdamW for all else."""
    inner = [tensor for name, tensor in weights.matrices.items() if name.startswith("layers.")]
    others = [tensor for name, tensor in weights.matrices.items() if not name.startswith("layers.")]
    muon = torch.optim.Muon(inner, lr=MUON_RATE, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(
        [*others, *weights.vectors.values()], lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0, fused=True
    )
    for optimizer in (muon, adam):
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return [muon, adam]


def rate(step: int, steps: int) -> float:
    """The learning rate as a share of its peak: up in a line, down to 0 in another."""
    return min((step + 1) / WARM_UP, (steps - step) / max(1, steps - WARM_UP))
