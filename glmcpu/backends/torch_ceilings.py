"""A torch device's limits, as kernels/ceiling.py measures those of the CPU: reading memory, and multiplying matrices.

read    the sum of 2 GB (512 MB on a CPU), which reads each byte once
dot, fma   a product of square matrices in the precision the model is computed in: what prefill cannot exceed
"""

import time
from collections.abc import Callable
from typing import Any

import torch

from glmcpu.backends.torch import Backend, explained
from glmcpu.peak_memory import peak_rss_bytes

READ_BYTES = {"cpu": 1 << 29}
SIDE = {"cpu": 1024}  # of the matrices
_TRIES = 5


class Ceilings:
    """The limits of a backend's device, measured again and again."""

    def __init__(self, threads: int | None, device: str | None, dtype: str | None) -> None:
        """Raises UsageError for a device that is not there."""
        backend = Backend(threads, None, device, dtype)
        self._device, self._dtype = backend.device, backend.dtype
        if threads is not None:
            torch.set_num_threads(threads)
        with explained(self._device):
            self._take()
        self.threads = torch.get_num_threads()
        self.extra_bytes = self._data.nbytes + self._matrix.nbytes
        self.read_gb_per_s = self.read()
        self.dot_gmac_per_s = self.fma_gmac_per_s = self.fma()

    def _take(self) -> None:
        """The memory that is read and multiplied."""
        n, side = READ_BYTES.get(self._device.type, 1 << 31) // 4, SIDE.get(self._device.type, 8192)
        self._data = torch.ones(n, device=self._device)
        self._matrix = torch.ones(side, side, device=self._device, dtype=self._dtype)

    def read(self) -> float:
        """GB/s of reading the device's memory, now."""
        return float(self._data.nbytes) / 1e9 / self._best_s(lambda: self._data.sum())

    def dot(self) -> float:
        """GMAC/s of products, now; bytes are made floats before they are multiplied."""
        return self.fma()

    def fma(self) -> float:
        """GMAC/s of products, now."""
        return len(self._matrix) ** 3 / 1e9 / self._best_s(lambda: self._matrix @ self._matrix)

    def peak_bytes(self) -> int | None:
        """The most memory that was in use, what was read for the ceiling left out: the device's, or the process's."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device)) - int(self.extra_bytes)
        peak = peak_rss_bytes()
        return None if peak is None else peak - int(self.extra_bytes)

    def machine(self) -> dict[str, Any]:
        """What computes, in the words of backends/cpu.py."""
        cuda = self._device.type == "cuda"
        return {
            "cpu": torch.cuda.get_device_name(self._device) if cuda else f"torch on {self._device}",
            "isa": str(self._dtype).removeprefix("torch."),
            "cores": self.threads,
            "threading_layer": f"torch {torch.__version__}",
        }

    def _best_s(self, work: Callable[[], torch.Tensor]) -> float:
        best = float("inf")
        for _ in range(_TRIES):
            begin = time.perf_counter()
            float(work().flatten()[0])  # waits for the device
            best = min(best, time.perf_counter() - begin)
        return best
