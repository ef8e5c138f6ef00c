"""How much memory this process has held at most."""

import ctypes
import sys


def peak_rss_bytes() -> int | None:
    """The most memory this process has held so far, mapped files included; None where the system does not say."""
    if sys.platform == "win32":
        return _windows_peak_bytes()
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


class _MemoryCounters(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS of the Windows API."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("page_faults", ctypes.c_uint32),
        ("peak_working_set", ctypes.c_size_t),
        ("others", ctypes.c_size_t * 7),
    )


def _windows_peak_bytes() -> int | None:
    counters = _MemoryCounters(length=ctypes.sizeof(_MemoryCounters))
    kernel32 = getattr(ctypes, "windll").kernel32  # noqa: B009  the attribute exists on Windows only
    this_process = ctypes.c_void_p(-1)
    if not kernel32.K32GetProcessMemoryInfo(this_process, ctypes.byref(counters), counters.length):
        return None
    return int(counters.peak_working_set)
