"""Which instruction set this process uses: one for the whole process, chosen once at import.

Every ISA is one file beside this one and defines the same few words (see `portable.py`). The best one the machine has
is taken; GLMCPU_ISA forces another, and then LLVM is held to that CPU's features too, so that a forced run computes
what a machine of that kind would compute.
"""

import os
import platform
from importlib import import_module
from types import ModuleType

import numba
from llvmlite import binding

from glmcpu.errors import UsageError, printable

# Best first; the last one runs everywhere.
NAMES = ("avx512_vnni", "avx_vnni", "avx2", "neon_dotprod", "portable")


def available() -> list[str]:
    """The names of the ISAs this machine can run, best first."""
    seen = {feature for feature, here in binding.get_host_cpu_features().items() if here}
    return [name for name in NAMES if seen.union(_unseen()).issuperset(_load(name).FEATURES)]


def _load(name: str) -> ModuleType:
    return import_module(f"glmcpu.simd.{name}")


def _unseen() -> set[str]:
    """What this CPU has and LLVM does not detect: on arm64, the dot product of bytes."""
    if platform.machine().lower() not in ("arm64", "aarch64"):
        return set()
    # NumPy asks the system on Linux only, but every Apple silicon has it.
    numpy_sees = import_module("numpy._core._multiarray_umath").__cpu_features__
    return {"dotprod"} if platform.system() == "Darwin" or numpy_sees.get("ASIMDDP") else set()


def _choose() -> ModuleType:
    here = available()
    forced = os.environ.get("GLMCPU_ISA") or here[0]
    if forced not in here:
        raise UsageError(f"GLMCPU_ISA={printable(forced)}: this machine has {' '.join(here)}; unset it or name one")
    isa = _load(forced)
    held = bool(isa.CPU) and forced != here[0]
    # LLVM aborts on a word its CPU cannot lower, so this overrides NUMBA_CPU_NAME too. Effective only before Numba's
    # first compilation, which importing this package precedes.
    numba.config.CPU_NAME, numba.config.CPU_FEATURES = _target(isa, held)
    return isa


def _target(isa: ModuleType, held: bool) -> tuple[str | None, str | None]:
    """LLVM's CPU and features: those of `isa` where held to them, else this machine's; None for what LLVM detects."""
    if held:
        return isa.CPU, isa.CPU_FEATURES
    missing = _unseen().intersection(isa.FEATURES)
    if not missing:
        return None, None
    features = binding.get_host_cpu_features()
    features.update(dict.fromkeys(missing, True))
    return None, features.flatten()


chosen = _choose()
name: str = chosen.__name__.rpartition(".")[2]
