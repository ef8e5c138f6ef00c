"""A tiny random model in place of the published architecture, and ceilings measured in no time."""

from typing import Any

import pytest

from glmcpu import models, random_weights
from glmcpu.kernels import ceiling

CHATGLM = models.load("chatglm")
# No size is a multiple of 16: nothing may depend on the official shape.
TINY: dict[str, Any] = {
    **random_weights.PUBLISHED["chatglm-6b"][1],
    "vocabulary": 205,
    "channels": 72,
    "layers": 2,
    "heads": 2,
    "feed_forward": 101,
    "bos": 204,
    "eos": 203,
    "mask": 200,
    "gmask": 201,
}


def quiet(*_: Any) -> None:
    """A progress that shows nothing."""


@pytest.fixture
def tiny_chatglm_6b(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published architecture, smaller."""
    monkeypatch.setitem(random_weights.PUBLISHED, "chatglm-6b", ("chatglm", TINY))


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measures a little of everything."""
    monkeypatch.setattr(ceiling, "_READ_BYTES", 1 << 22)
    monkeypatch.setattr(ceiling, "_CHUNK_S", 1e-5)
    monkeypatch.setattr(ceiling, "_TRIES", 2)
