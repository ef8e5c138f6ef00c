"""The one door for large allocations, and what the machine can still give.

Going through `alloc` makes "out of memory" one sentence for the user, and makes it testable at the n-th call.
"""

import ctypes
import os
import sys
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike, NDArray

from glmcpu.errors import MachineError


def alloc(shape: tuple[int, ...], dtype: DTypeLike, why: str) -> NDArray[np.generic]:
    """A zeroed array; pages are taken from the system only when they are first written.

    Raises MachineError with the size and `why` (a noun: "the KV cache") when the system has no room.
    """
    size_bytes = np.dtype(dtype).itemsize
    for n in shape:
        size_bytes *= int(n)
    try:
        return np.zeros(shape, dtype)
    except (MemoryError, ValueError) as error:
        raise MachineError(
            f"no memory for {why}: {megabytes(size_bytes)} asked for; close other programs, or lower --context"
        ) from error


def require(needed_bytes: int, why: str, have: int | None) -> None:
    """Raises MachineError when there is less memory than `needed_bytes`, before the work starts; None is unknown."""
    if have is not None and needed_bytes > have:
        raise MachineError(
            f"{why} needs {megabytes(needed_bytes)} of memory and {megabytes(have)} are available; "
            "close other programs, lower --context, or use a smaller weight format"
        )


def available_bytes() -> int | None:
    """Memory a new program can use without swapping, the container's limit included; None where unknown."""
    if sys.platform == "linux":
        known = [n for n in (_linux_available(), _cgroup_available()) if n is not None]
        return min(known, default=None)
    if sys.platform == "win32":
        return _windows_available()
    return _physical_bytes()


def megabytes(size_bytes: int) -> str:
    """1234567890 -> "1,235 MB", the unit of every message about memory and disk."""
    return f"{size_bytes / 1e6:,.0f} MB"


def _linux_available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _cgroup_available() -> int | None:
    """What is left under the container's memory limit (cgroup v2, then v1)."""
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            total, current = int(Path(limit).read_text()), int(Path(used).read_text())
        except (OSError, ValueError):
            continue
        return max(0, total - current) + _cgroup_reclaimable(Path(limit).parent)
    return None


def _cgroup_reclaimable(folder: Path) -> int:
    """Page cache counted against the limit, which the kernel gives back on demand."""
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    fields = dict(line.split()[:2] for line in lines if line)
    return int(fields.get("inactive_file", 0)) + int(fields.get("active_file", 0))


def _physical_bytes() -> int | None:
    """All physical memory: macOS compresses and pages so freely that "free" says nothing."""
    try:
        return int(os.sysconf("SC_PHYS_PAGES")) * int(os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        return None


class _MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX of the Windows API."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        ("total_physical", ctypes.c_uint64),
        ("available_physical", ctypes.c_uint64),
        ("total_page_file", ctypes.c_uint64),
        ("available_page_file", ctypes.c_uint64),
        ("total_virtual", ctypes.c_uint64),
        ("available_virtual", ctypes.c_uint64),
        ("available_extended", ctypes.c_uint64),
    )


def _windows_available() -> int | None:
    status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
    kernel32 = getattr(ctypes, "windll").kernel32  # noqa: B009  the attribute exists on Windows only
    if not kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None
    return int(status.available_physical)
