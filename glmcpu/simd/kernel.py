"""`@kernel`: Numba's njit with the project's settings and a compilation cache that can be trusted.

Compiling all kernels takes seconds, loading them a fraction. Numba's own disk cache would keep stale code, because it
notices changes only in the file that holds the function, and its entries are pickles, so whoever can write the folder
can run code as the user. Hence a private folder, named by what the code depends on (the digest of simd/, kernels/ and
formats/, the versions, the ISA), owned by the user and writable by nobody else. An entry that cannot be read costs a
recompile; no usable folder costs one per process.
"""

import contextlib
import functools
import hashlib
import os
import platform
import stat
import sys
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core import caching

from glmcpu.simd import isa

entry = threading.RLock()
"""Held while a parallel kernel runs; whoever runs many in a row may hold it around them."""


def kernel(parallel: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """Compiles a function on its first call and keeps the machine code.

    No bounds checks, no fast-math, division by zero as in NumPy. `parallel` allows prange. A kernel is given the number
    of threads: one that asks Numba for it holds a pointer of this process and cannot be kept on disk. Calls of parallel
    kernels wait for each other: Numba's workqueue layer aborts the process when two threads enter at once.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        dispatcher = numba.njit(parallel=parallel, boundscheck=False, error_model="numpy", nogil=True)(function)
        keep(dispatcher, function)

        @functools.wraps(dispatcher, updated=())
        def enter(*arguments: Any) -> Any:
            with entry:
                return dispatcher(*arguments)

        return enter if parallel else dispatcher

    return decorate


def keep(compiled: Any, function: Callable[..., Any]) -> None:
    """Lets a dispatcher or a C function of `function` keep its machine code in our folder."""
    if folder() is not None:
        compiled._cache = _KernelCache(function)


@cache
def folder() -> Path | None:
    """The private folder of compiled kernels, made on demand; None when there is no safe place for one."""
    try:
        root = _cache_root() / "kernels"
        path = root / _digest()
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        if not (_private(root) and _private(path)):
            return None
        with open(path / ".writable", "wb"):
            pass
    except (OSError, RuntimeError):  # RuntimeError: this user has no home
        return None
    return path


def compiled_before(*names: str) -> bool:
    """Whether kernels of these files or names ("int8", "norms._layer_norm") are kept, so that a first call is quick."""
    place = folder()
    return place is not None and all(any(place.glob(f"{name}[.-]*.nbi")) for name in names)


def _cache_root() -> Path:
    if home := os.environ.get("GLMCPU_CACHE"):
        return Path(home)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "glmcpu" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "glmcpu"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glmcpu"


@cache
def _digest() -> str:
    """Names everything compiled code depends on: our sources, Numba, LLVM, Python, the ISA and the CPU."""
    package = Path(__file__).parents[1]
    state = hashlib.sha256()
    for source in sorted(p for name in ("simd", "kernels", "formats") for p in (package / name).glob("*.py")):
        state.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    cpu = (numba.config.CPU_NAME, numba.config.CPU_FEATURES)
    versions = (numba.__version__, llvmlite.__version__, sys.version, platform.machine(), isa.name, cpu)
    state.update(repr(versions).encode())
    return f"{isa.name}-{state.hexdigest()[:16]}"


def _private(path: Path) -> bool:
    """Ours, a real folder, and writable by us alone (Windows: folders under the user's profile are)."""
    status = path.lstat()
    if sys.platform == "win32":
        return stat.S_ISDIR(status.st_mode)
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022


class _Locator(caching._CacheLocator):  # type: ignore[misc]
    """Puts every entry into our folder; the folder's name already stands for the source."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._module = function.__module__
        self._py_file = function.__code__.co_filename  # for Numba's warning when something cannot be kept

    def get_cache_path(self) -> str:
        return str(folder())

    def get_source_stamp(self) -> str:
        return _digest()

    def get_disambiguator(self) -> str:
        return self._module

    @classmethod
    def from_function(cls, py_func: Callable[..., Any], py_file: str) -> "_Locator":
        return cls(py_func)


class _Implementation(caching.CompileResultCacheImpl):  # type: ignore[misc]
    _locator_classes = (_Locator,)


class _KernelCache(caching.FunctionCache):  # type: ignore[misc]
    _impl_class = _Implementation

    def _index_key(self, signature: Any, codegen: Any) -> Any:
        # Numba adds a hash of what a closure holds, and a kernel's is new in every process. Without it, closures of one
        # function need a module or name of their own each (see formats/_tiles.py), or they get each other's code.
        return signature, codegen.magic_tuple()

    def load_overload(self, signature: Any, target: Any) -> Any:
        with contextlib.suppress(Exception):  # a damaged pickle can raise anything
            compiled = super().load_overload(signature, target)
            # Two processes that compile at once can each put their own code behind the other's index entry.
            wanted = getattr(signature, "args", signature)  # a dispatcher asks by arguments, a C function by signature
            if compiled is None or tuple(compiled.signature.args) == tuple(wanted):
                return compiled
        with contextlib.suppress(OSError):
            self.flush()  # the entry is dropped and compiled again
        return None

    def save_overload(self, signature: Any, data: Any) -> None:
        try:
            super().save_overload(signature, data)
        except Exception:  # a full disk or a damaged index must not stop a conversation
            with contextlib.suppress(OSError):
                self.flush()
