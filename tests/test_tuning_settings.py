"""Settings: the official defaults, their bounds, and the learning rate of every step."""

from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed")

from glmcpu.errors import UsageError
from glmcpu.tuning.settings import Settings, learning_rate


def test_defaults_are_those_of_the_official_train_sh() -> None:
    s = Settings().of(1000)
    assert (s.prefix_tokens, s.learning_rate, s.source_tokens, s.target_tokens) == (128, 2e-2, 64, 64)
    assert (s.batch, s.accumulation, s.steps, s.save_every, s.evaluate_every) == (1, 16, 3000, 1000, 1000)
    assert (s.schedule, s.warm_up, s.projection) == ("linear", 0, False)


@pytest.mark.parametrize(
    ("given", "fact"),
    [
        ({"prefix_tokens": 0}, "prefix_tokens=0: a whole number from 1 to 4,096"),
        ({"batch": 1.5}, "batch=1.5: a whole number"),
        ({"batch": True}, "batch=True"),
        ({"learning_rate": 0}, "learning_rate=0: a number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"schedule": "step"}, "schedule='step': known are linear cosine constant"),
        ({"steps": 5, "epochs": 2}, "steps=5 and epochs=2: both say how long"),
        ({"epochs": -1.0}, "epochs=-1.0"),
        ({"target_tokens": 2}, "target_tokens=2: a whole number from 3"),
        ({"warm_up": -1}, "warm_up=-1"),
    ],
)
def test_what_is_out_of_range_is_refused(given: dict[str, Any], fact: str) -> None:
    with pytest.raises(UsageError, match=fact):
        Settings(**given)


@pytest.mark.parametrize(("epochs", "steps"), [(1, 13), (2, 25), (0.01, 1)])
def test_epochs_are_steps_of_so_many_examples(epochs: float, steps: int) -> None:
    assert Settings(epochs=epochs, batch=2, accumulation=4).of(100).steps == steps


def rates(schedule: str, warm_up: int = 0, steps: int = 8) -> list[float]:
    s = Settings(learning_rate=1, schedule=schedule, warm_up=warm_up, steps=steps)
    return [round(learning_rate(s, step), 4) for step in range(steps)]


def test_learning_rates_are_those_of_transformers() -> None:
    assert rates("linear") == [1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]
    assert rates("linear", 4) == [0, 0.25, 0.5, 0.75, 1.0, 0.75, 0.5, 0.25]
    assert rates("constant", 2) == [0, 0.5, 1, 1, 1, 1, 1, 1]
    assert rates("cosine") == [1.0, 0.9619, 0.8536, 0.6913, 0.5, 0.3087, 0.1464, 0.0381]
    assert rates("linear", 8) == [0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875]
