"""The machine that kernels run on, in words."""

import platform
from pathlib import Path
from typing import Any

from glmcpu.kernels import threads
from glmcpu.simd import isa


def machine() -> dict[str, Any]:
    """What kernels run on: cpu, isa, isas (all this machine has), cores, threads, threading_layer."""
    return {
        "cpu": _cpu_name(),
        "isa": isa.name,
        "isas": isa.available(),
        "cores": threads.physical_cores(),
        "threads": threads.default_threads(),
        "threading_layer": threads.threading_layer(),
    }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
