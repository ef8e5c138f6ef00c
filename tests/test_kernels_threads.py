"""The number of threads and who runs them."""

import os
import subprocess
import sys
from collections.abc import Iterator

import numba
import pytest

from glmcpu.errors import UsageError
from glmcpu.kernels import threads


@pytest.fixture(autouse=True)
def _unchanged() -> Iterator[None]:
    before = numba.get_num_threads()
    yield
    numba.set_num_threads(before)


@pytest.mark.parametrize("n", [1, 2])
def test_the_number_asked_for_is_used(n: int) -> None:
    assert threads.set_threads(n) == n
    assert threads.threads() == n


def test_without_a_number_there_is_one_for_each_core() -> None:
    most = int(numba.config.NUMBA_NUM_THREADS)
    assert threads.set_threads(None) == threads.threads() == min(threads.physical_cores(), most)


@pytest.mark.parametrize("n", [0, -1, 100_000])
def test_a_number_out_of_range_is_refused_with_the_range(n: int) -> None:
    threads.set_threads(1)
    with pytest.raises(UsageError, match=rf"--threads {n}: this machine runs 1 to \d+ threads"):
        threads.set_threads(n)
    assert threads.threads() == 1


def test_cores_are_counted_within_the_cpus_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    assert 1 <= threads.physical_cores() <= allowed
    if hasattr(os, "sched_getaffinity"):
        one = {min(os.sched_getaffinity(0))}
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: one)
        assert threads.physical_cores.__wrapped__() == 1


def test_the_threading_layer_has_a_name_before_any_kernel_has_run() -> None:
    code = "from glmcpu.kernels import threads; print(threads.threading_layer())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() in ("omp", "tbb", "workqueue")
