"""The values in a checkpoint's folder, or the sentence with which it is refused."""

from pathlib import Path

import numpy as np
import pytest

from glmcpu.convert.checkpoint import open_checkpoint
from glmcpu.errors import DataError, GlmcpuError


def values(folder: Path) -> dict[str, np.ndarray]:
    with open_checkpoint(folder) as checkpoint:
        return {name: checkpoint.read(name) for name in checkpoint.tensors}


def refusal(folder: Path, kind: type[GlmcpuError] = DataError) -> str:
    """The message with which the checkpoint is refused, at opening or when its values are read."""
    with pytest.raises(kind) as caught:
        values(folder)
    message = str(caught.value)
    assert len(message) <= 300
    assert message.isprintable()
    return message
