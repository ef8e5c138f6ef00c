"""P-Tuning v2 of a packed model: the weights stay as they are in the file, and a prefix before every layer is learnt.

    for each step:      accumulation times a batch: loss of its answers, gradient of the prefix
                        AdamW with the gradient's norm clipped to 1, as the official trainer
    now and then:       validation loss, a checkpoint, the state to go on from

The forward is the product's own, models/chatglm.py, on backends/torch_training.py. Everything random is drawn anew from
seed and step, so a training that goes on from its state ends in the same bits as one that was never interrupted (on a
CPU; GPUs add up gradients in no fixed order).
"""

import dataclasses
import functools
import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from glmcpu import memory
from glmcpu.backends.torch import explained
from glmcpu.backends.torch_training import Backend
from glmcpu.convert.chatglm import official_config
from glmcpu.errors import UsageError, shown
from glmcpu.model import read_config
from glmcpu.models import Part
from glmcpu.packed import PackedFile
from glmcpu.tuning import data, encoder, state
from glmcpu.tuning.data import Example, Examples
from glmcpu.tuning.encoder import PrefixEncoder
from glmcpu.tuning.settings import Settings, learning_rate
from glmcpu.tuning.state import State

CLIP = 1.0
LOG_EVERY = 10  # steps
STATE_S = 600.0  # no more work than this is lost


@dataclass(frozen=True)
class Report:
    """After a step: the mean loss since the last report, and the validation loss where it was measured."""

    step: int
    steps: int
    loss: float
    seconds_left: float
    validation: float | None = None


class Trainer:
    """One training, from its settings to the official files in `output`."""

    def __init__(
        self,
        base: Path,
        output: Path,
        examples: Examples,
        validation: Examples | None,
        settings: Settings,
        backend: Backend,
    ) -> None:
        """Opens the base model; raises DataError, and MachineError when the memory does not suffice."""
        self._packed = PackedFile(base)
        generation, self.config = read_config(self._packed)
        self.output, self.examples, self.validation = output, examples, validation
        self.settings = settings.of(len(examples.all))
        self.backend = backend
        prefix_bytes = 4 * 2 * self.settings.prefix_tokens * self.config.layers * self.config.channels
        if settings.projection:
            prefix_bytes += 4 * (2 * self.config.layers + 1) * self.config.channels**2
        memory.require(self._packed.size_bytes + 6 * prefix_bytes, f"tuning {shown(base)}", backend.available_bytes())
        self.model: Any = generation.build(self.config, self._packed, backend)  # type: ignore[arg-type]
        s = self.settings
        with explained(backend.device, "or take a shorter --prefix-tokens"):
            self.encoder = PrefixEncoder(self.config, s.prefix_tokens, s.projection, s.seed).to(backend.device)
        self._parameters = dict(self.encoder.named_parameters())
        self._optimizer = torch.optim.AdamW(self._parameters.values(), lr=s.learning_rate, weight_decay=0.0)
        self.state = State()
        self._saved_s = time.monotonic()

    def resume(self) -> None:
        """Goes on from the state in `output`; raises DataError when there is none, UsageError when it is another's."""
        tensors, found, identity = state.read(self.output)
        mine = self._identity
        if other := [key for key in mine if identity.get(key) != mine[key]]:
            raise UsageError(
                f"{shown(self.output)}: its training has {other[0]} {identity.get(other[0])} and this one "
                f"{mine[other[0]]}; go on with the same, or start anew in another folder"
            )
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(tensors[f"prefix.{name}"])
        for name, parameter in self._parameters.items():
            self._optimizer.state[parameter] = {
                "step": torch.tensor(float(found.step)),
                "exp_avg": tensors[f"mean.{name}"].to(parameter.device),
                "exp_avg_sq": tensors[f"square.{name}"].to(parameter.device),
            }
        self.state = found

    def run(self, report: Callable[[Report], None]) -> State:
        """Trains to the end; returns the final state.

        Raises UsageError when the loss is no number any more, MachineError when the disk or the device is full: what
        was saved before stays.
        """
        self._write_state()  # the folder is this training's from now on; what cannot be written is found now
        s, begun_s, begun, now = self.settings, time.monotonic(), self.state.step, self.state
        steps = s.steps or 0
        while now.step < steps and not self._has_settled():
            with explained(self.backend.device, "lower --batch, or pass --checkpointing"):
                now.losses.append(self._step())
                look = self.validation and (self._due(s.evaluate_every) or now.step == steps)
                evaluated = self._evaluate() if look else None
            if evaluated is not None or now.step % LOG_EVERY == 0 or now.step == steps:
                loss, now.losses = math.fsum(now.losses) / len(now.losses), []
                line = {"step": now.step, "loss": loss, "learning_rate": learning_rate(s, now.step - 1)}
                now.log.append(line if evaluated is None else {**line, "validation_loss": evaluated})
                left_s = (time.monotonic() - begun_s) / (now.step - begun) * (steps - now.step)
                report(Report(now.step, steps, loss, left_s, evaluated))
            self._keep()
        return now

    def loss(self, batch: Sequence[Example], generator: torch.Generator | None = None) -> Tensor:
        """The mean negative log-likelihood of what is to be predicted in a batch; with a generator, with dropout."""
        self.backend.prefix = self.encoder(len(batch), generator)
        S = max(len(example.ids) for example in batch)
        filled = [[*example.ids, *[self.config.pad] * (S - len(example.ids))] for example in batch]
        parts = [Part(ids, self.model.new_cache(S)) for ids in filled]
        wanted = [b * S + np.arange(example.begin - 1, len(example.ids) - 1) for b, example in enumerate(batch)]
        targets = np.concatenate([example.ids[example.begin :] for example in batch])
        scores: Any = self.model.forward(parts, wanted=np.concatenate(wanted))
        return functional.cross_entropy(scores.float(), torch.from_numpy(targets).to(scores.device))

    def _step(self) -> float:
        """One step of AdamW; returns its loss."""
        s, total = self.settings, 0.0
        self._optimizer.zero_grad()
        for n in range(self.state.step * s.accumulation, (self.state.step + 1) * s.accumulation):
            generator = torch.Generator(self.backend.device).manual_seed(s.seed + 1_000_003 * (n + 1))
            loss = self.loss(data.batch(self.examples.all, n, s.batch, s.seed), generator)
            total += float(loss.detach())
            self._check("the loss", total)
            (loss / s.accumulation).backward()
        norm = torch.nn.utils.clip_grad_norm_(self._parameters.values(), CLIP)
        self._check("the gradient", float(norm))
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(s, self.state.step)
        self._optimizer.step()
        self.state.step += 1
        return total / s.accumulation

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _evaluate(self) -> float:
        """The validation loss, over all tokens of it; remembers the best prefix on disk."""
        examples, total, count = (self.validation or self.examples).all, 0.0, 0
        for begin in range(0, len(examples), self.settings.batch):
            batch = examples[begin : begin + self.settings.batch]
            predicted = sum(len(example.ids) - example.begin for example in batch)
            total += predicted * float(self.loss(batch))
            count += predicted
        loss = total / count
        self._check("the validation loss", loss)
        self.state.evaluations_since_best += 1
        if self.state.best is None or loss < self.state.best:
            self.state.best, self.state.evaluations_since_best = loss, 0
            self._write_prefix(self.output)
        return loss

    def _keep(self) -> None:
        """Checkpoint and state, when it is time."""
        ended = self.state.step == self.settings.steps or self._has_settled()
        due = ended or self._due(self.settings.save_every)
        if due:
            self._write_prefix(self.output / f"checkpoint-{self.state.step}")
        if ended and self.validation is None:
            self._write_prefix(self.output)
        if due or time.monotonic() - self._saved_s > STATE_S:
            self._write_state()

    def _write_state(self) -> None:
        tensors = {}
        for name, parameter in self._parameters.items():
            moments = self._optimizer.state[parameter]  # none before the first step
            tensors[f"prefix.{name}"] = parameter.detach().cpu()
            for short, moment in (("mean", "exp_avg"), ("square", "exp_avg_sq")):
                tensors[f"{short}.{name}"] = (moments[moment] if moments else torch.zeros_like(parameter)).cpu()
        state.write(self.output, tensors, self.state, self._identity)
        state.write_log(self.output, self.state)
        self._saved_s = time.monotonic()

    def _write_prefix(self, folder: Path) -> None:
        official = official_config(self.config)
        config = encoder.configuration(official, self.settings.prefix_tokens, self.settings.projection)
        state.write_prefix(folder, self.encoder.official(), config)

    def _has_settled(self) -> bool:
        patience = self.settings.patience
        return patience is not None and self.state.evaluations_since_best >= patience

    def _due(self, every: int | None) -> bool:
        return every is not None and self.state.step % every == 0

    def _check(self, what: str, value: float) -> None:
        """Raises UsageError when a loss or a gradient is no number any more."""
        if math.isfinite(value):
            return
        kept = state.checkpoints(self.output)
        before = f"{kept[-1].name} stays" if kept else "nothing was saved yet"
        raise UsageError(
            f"{what} is {value} in step {self.state.step + 1:,}, which happens when the learning rate, here "
            f"{self.settings.learning_rate:g}, is too high; lower --learning-rate or raise --warm-up; {before}"
        )

    @functools.cached_property
    def _identity(self) -> dict[str, Any]:
        """What a training must have in common with one that goes on from it."""
        texts = [(example.ids, example.begin) for example in self.examples.all]
        others = [(example.ids, example.begin) for example in self.validation.all] if self.validation else []
        base = hashlib.sha256(repr(sorted(self._packed.contents.checksums.items())).encode())
        table = dataclasses.asdict(self.settings)
        table |= {"base": base.hexdigest()[:16], "dtype": str(self.backend.dtype).removeprefix("torch.")}
        return table | {"examples": _digest(texts), "validation": _digest(others)}


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]
