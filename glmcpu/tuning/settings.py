"""What a training is told: the defaults of the official train.sh, their bounds, and the learning rate of each step."""

import dataclasses
import math
from dataclasses import dataclass

from glmcpu import limits
from glmcpu.errors import UsageError, printable

STEPS = 3000
SCHEDULES = ("linear", "cosine", "constant")


@dataclass(frozen=True)
class Settings:
    """Two trainings with equal settings on equal data give equal results, on a CPU to the bit.

    batch, accumulation   sequences read together, and how many such batches make a step
    steps, epochs         how long: one of them, 3000 steps if neither
    source_tokens, target_tokens   what is longer is cut: the question, and the answer
    warm_up               steps in which the learning rate grows
    save_every            steps between two checkpoints
    evaluate_every        steps between two looks at the validation data, save_every if None
    patience              evaluations without a better loss after which it ends, None: never
    checkpointing         compute each layer twice and keep less of it
    """

    prefix_tokens: int = 128
    projection: bool = False
    learning_rate: float = 2e-2
    schedule: str = "linear"
    warm_up: int = 0
    batch: int = 1
    accumulation: int = 16
    steps: int | None = None
    epochs: float | None = None
    source_tokens: int = 64
    target_tokens: int = 64
    seed: int = 42
    save_every: int = 1000
    evaluate_every: int | None = None
    patience: int | None = None
    checkpointing: bool = False

    def __post_init__(self) -> None:
        """Raises UsageError for what is out of range."""
        for name, low, high in (
            ("prefix_tokens", 1, limits.PREFIX_TOKENS),
            ("warm_up", 0, limits.TUNING_STEPS),
            ("batch", 1, limits.TUNING_BATCH),
            ("accumulation", 1, limits.TUNING_BATCH),
            ("steps", 1, limits.TUNING_STEPS),
            ("source_tokens", 2, limits.CONTEXT),
            ("target_tokens", 3, limits.CONTEXT),
            ("seed", 0, 1 << 32),
            ("save_every", 1, limits.TUNING_STEPS),
            ("evaluate_every", 1, limits.TUNING_STEPS),
            ("patience", 1, limits.TUNING_STEPS),
        ):
            value = getattr(self, name)
            optional = name in ("steps", "evaluate_every", "patience")
            if not (value is None and optional) and not (type(value) is int and low <= value <= high):
                raise UsageError(f"{name}={printable(value)}: a whole number from {low:,} to {high:,} is needed")
        for name in ("learning_rate", "epochs"):
            value = getattr(self, name)
            if not (name == "epochs" and value is None) and not (math.isfinite(value) and 0 < value <= 1e6):
                raise UsageError(f"{name}={printable(value)}: a number above 0, up to 1,000,000, is needed")
        if self.schedule not in SCHEDULES:
            raise UsageError(f"schedule={printable(self.schedule)!r}: known are {' '.join(SCHEDULES)}")
        if self.steps is not None and self.epochs is not None:
            raise UsageError(f"steps={self.steps} and epochs={self.epochs:g}: both say how long to train; give one")

    def of(self, examples: int) -> "Settings":
        """The same for so many examples, with the number of steps said."""
        steps = self.steps
        if self.epochs is not None:
            steps = max(1, math.ceil(self.epochs * examples / (self.batch * self.accumulation)))
        every = self.save_every if self.evaluate_every is None else self.evaluate_every
        return dataclasses.replace(self, steps=steps or STEPS, epochs=None, evaluate_every=every)


def learning_rate(settings: Settings, step: int) -> float:
    """That of step 0, 1, ..: up in a line, then as the schedule says, as transformers' schedules do it."""
    steps, warm_up = settings.steps or STEPS, settings.warm_up
    if step < warm_up:
        share = step / warm_up
    elif settings.schedule == "constant":
        share = 1.0
    else:
        way = (step - warm_up) / max(1, steps - warm_up)
        share = 1 - way if settings.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * way))
    return settings.learning_rate * max(0.0, share)
