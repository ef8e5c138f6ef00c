"""Which instruction set this process uses: one for the whole process, chosen once at import.

Every ISA is one file beside this one and defines the same few words (see `portable.py`). The best one the machine has
is taken; GLMCPU_ISA forces another, and then LLVM is held to that CPU's features too, so that a forced run computes
what a machine of that kind would compute.
"""

import os
from importlib import import_module
from types import ModuleType

import numba
from llvmlite import binding

from glmcpu.errors import UsageError, printable

# Best first; the last one runs everywhere.
NAMES = ("avx512_vnni", "avx2", "portable")


def available() -> list[str]:
    """The names of the ISAs this machine can run, best first."""
    return [name for name in NAMES if _runs_here(_load(name))]


def _load(name: str) -> ModuleType:
    return import_module(f"glmcpu.simd.{name}")


def _runs_here(isa: ModuleType) -> bool:
    features = binding.get_host_cpu_features()
    return all(features.get(feature, False) for feature in isa.FEATURES)


def _choose() -> ModuleType:
    here = available()
    forced = os.environ.get("GLMCPU_ISA") or here[0]
    if forced not in here:
        raise UsageError(f"GLMCPU_ISA={printable(forced)}: this machine has {' '.join(here)}; unset it or name one")
    isa = _load(forced)
    held = bool(isa.CPU) and forced != here[0]
    # Overrides NUMBA_CPU_NAME too: LLVM aborts on a word its CPU cannot lower. Effective only before Numba's first
    # compilation, which importing this package precedes.
    numba.config.CPU_NAME, numba.config.CPU_FEATURES = (isa.CPU, isa.CPU_FEATURES) if held else (None, None)
    return isa


chosen = _choose()
name: str = chosen.__name__.rpartition(".")[2]
