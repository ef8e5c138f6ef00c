"""The peak of this process's memory."""

import numpy as np
import pytest

from glmcpu.peak_memory import peak_rss_bytes


def test_the_peak_grows_with_what_is_held_and_does_not_fall() -> None:
    before = peak_rss_bytes()
    if before is None:
        pytest.skip("this system does not say")
    size_bytes = before + (64 << 20)
    assert np.ones(size_bytes, np.uint8).any()
    after = peak_rss_bytes()
    assert after is not None
    assert size_bytes < after < size_bytes + (2 << 30)
    assert peak_rss_bytes() == after
