"""A models folder of its own for every test, and the same computation on 1 and 2 threads.

Compiled kernels are kept where the product keeps them, so that a second run of the tests compiles nothing.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

if (os.cpu_count() or 1) < 2:
    os.environ.setdefault("NUMBA_NUM_THREADS", "2")  # Numba reads it once, when it is imported


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLMCPU_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture
def on_threads() -> Iterator[Callable[[Callable[[], Any]], Any]]:
    """on_threads(compute): the arrays compute() returns on 1 thread, after comparing their bits with those on 2."""
    import numba

    before = numba.get_num_threads()

    def run(compute: Callable[[], Any]) -> Any:
        results = []
        for n in (1, 2):
            numba.set_num_threads(n)
            results.append(compute())
        one, two = (r if isinstance(r, tuple) else (r,) for r in results)
        assert [(a.dtype, a.shape, a.tobytes()) for a in one] == [(b.dtype, b.shape, b.tobytes()) for b in two]
        return results[0]

    with np.errstate(all="ignore"):
        yield run
    numba.set_num_threads(before)
