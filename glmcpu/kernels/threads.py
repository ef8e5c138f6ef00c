"""How many threads the kernels use, and which of Numba's threading layers runs them."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numba

from glmcpu.errors import UsageError, printable

_SPINS = "1000"


def set_threads(n: int | None) -> int:
    """Uses n threads from now on, or one for each physical core; returns the number.

    Raises UsageError when n is not between 1 and the number of CPUs Numba may use.
    """
    most = int(numba.config.NUMBA_NUM_THREADS)
    if n is None:
        n = default_threads()
    if not 1 <= n <= most:
        raise UsageError(f"--threads {n}: this machine runs 1 to {most} threads")
    _start()
    numba.set_num_threads(n)
    return n


def default_threads() -> int:
    """One thread for each physical core, as far as Numba may use them."""
    return min(physical_cores(), int(numba.config.NUMBA_NUM_THREADS))


def threads() -> int:
    """The number of threads kernels use now."""
    return int(numba.get_num_threads())


def threading_layer() -> str:
    """The threading layer in use: omp, tbb or workqueue. Starts it if no kernel has run yet."""
    _start()
    return str(numba.threading_layer())


@cache
def _start() -> None:
    """Starts Numba's threads.

    GNU OpenMP reads GOMP_SPINCOUNT when it is loaded. By default a thread at the end of a parallel region turns for
    milliseconds before it sleeps; where another program has taken a core, that is the core the last thread needs.
    """
    from numba.np.ufunc.parallel import _launch_threads

    before = os.environ.get("GOMP_SPINCOUNT")
    os.environ["GOMP_SPINCOUNT"] = before or _SPINS
    try:
        _launch_threads()
    except ValueError as error:
        raise _not_started(error) from error
    finally:
        if before is None:
            del os.environ["GOMP_SPINCOUNT"]


def _not_started(error: ValueError) -> UsageError:
    return UsageError(f"Numba cannot start its threads: {printable(error)}; unset NUMBA_THREADING_LAYER")


@cache
def physical_cores() -> int:
    """Cores this process may use, two hardware threads of one core counted once: they share its vector units."""
    logical = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if sys.platform == "linux":
        return min(logical, _linux_cores() or logical)
    if sys.platform == "darwin":
        return _mac_cores() or logical
    return max(1, logical // 2) if logical > 4 else logical


def _linux_cores() -> int:
    """Distinct (package, core) pairs among the CPUs this process may run on; 0 where unknown."""
    pairs = set()
    for cpu in os.sched_getaffinity(0):
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
        try:
            pairs.add(((topology / "physical_package_id").read_text(), (topology / "core_id").read_text()))
        except OSError:
            return 0
    return len(pairs)


def _mac_cores() -> int:
    """The performance cores of an Apple chip, or all physical cores; 0 where unknown."""
    for key in ("hw.perflevel0.physicalcpu", "hw.physicalcpu"):
        try:
            answer = subprocess.run(
                ["/usr/sbin/sysctl", "-n", key], capture_output=True, text=True, timeout=5, check=True
            )
            return int(answer.stdout)
        except (OSError, ValueError, subprocess.SubprocessError):
            continue
    return 0
