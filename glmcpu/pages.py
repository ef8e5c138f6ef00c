"""Large pages: Linux can keep a file in memory in pieces of 2 MB, and reading weights then misses fewer page tables.

It does so for a mapping that asks, and only where it reads the file from the disk. What was written a moment ago is
still there in the pieces it was written in, and maps as small pages for as long as it stays: the weights of a model
that was just converted would be read a tenth slower until the machine needs the memory.
"""

import contextlib
import mmap
import os
from typing import BinaryIO

_WINDOW = 64 << 20  # mapped at once, so that a process never seems to hold all of a file
_POPULATE_READ = 22  # MADV_POPULATE_READ since Linux 5.14; mmap has no name for it


def ask_for_large_pages(mapped: mmap.mmap) -> None:
    """Of this mapping; elsewhere than on Linux nothing happens."""
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            mapped.madvise(mmap.MADV_HUGEPAGE)


def read_anew(file: BinaryIO) -> None:
    """Lets the system forget what it kept of a file that was just written, and reads it from the disk again.

    So what is compared next is what the disk holds, and not what was handed to it. Raises OSError when the last bytes
    cannot be written; a disk that cannot be read says so to whoever reads the file.
    """
    file.flush()
    os.fsync(file.fileno())
    if not hasattr(os, "posix_fadvise") or not hasattr(mmap, "MADV_HUGEPAGE"):
        return
    with contextlib.suppress(OSError, ValueError):  # a file system that does not map, or an older kernel
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        size = os.fstat(file.fileno()).st_size
        for begin in range(0, size, _WINDOW):
            length = min(_WINDOW, size - begin)
            with mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ, offset=begin) as window:
                ask_for_large_pages(window)
                window.madvise(_POPULATE_READ)
