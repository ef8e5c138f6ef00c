"""A weight file open for reading, which must not change until it is closed.

Reads go into buffers of the caller's: a mapping would count as the process's memory, and a file truncated under a
mapping kills the process. Size and time of change are compared at every read, so a download that still runs beside
us is an error and never a model made of two halves.
"""

import os
from pathlib import Path

from glmcpu.errors import DataError, MachineError, shown
from glmcpu.files import open_regular, reason


class WeightFile:
    """`size_bytes` and `name` (for messages) are as they were at opening. One thread at a time."""

    def __init__(self, path: Path) -> None:
        """Raises DataError when there is no such regular file, MachineError when the system refuses."""
        self.path = path
        self.name = shown(path)
        self.file = open_regular(path)
        self._state = self._stat()
        self.size_bytes = self._state[0]
        self.verified: set[str] = set()  # members whose checksum has been seen to be right

    def read_into(self, begin: int, out: memoryview) -> None:
        """Fills `out` (bytes) from byte `begin` on; raises DataError at the end, MachineError when reading fails."""
        try:
            self.file.seek(begin)
            done = 0
            while done < len(out):
                n = self.file.readinto(out[done:])
                if not n:
                    break
                done += n
        except OSError as error:
            raise MachineError(f"{self.name}: cannot be read at byte {begin:,}: {reason(error)}") from error
        self.check_unchanged()
        if done < len(out):
            raise DataError(
                f"{self.name}: truncated: expected at least {begin + len(out):,} bytes, has {self.size_bytes:,}; "
                "download it again"
            )

    def read(self, begin: int, size_bytes: int) -> bytes:
        """Exactly `size_bytes` bytes; the caller has bounded them."""
        out = bytearray(size_bytes)
        self.read_into(begin, memoryview(out))
        return bytes(out)

    def check_unchanged(self) -> None:
        if self._stat() != self._state:
            raise MachineError(f"{self.name}: changed while reading; wait until its download has ended and run again")

    def close(self) -> None:
        self.file.close()

    def _stat(self) -> tuple[int, int]:
        status = os.fstat(self.file.fileno())
        return status.st_size, status.st_mtime_ns
