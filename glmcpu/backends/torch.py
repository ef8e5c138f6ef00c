"""The torch backend: the operations of a forward on a GPU or any other device torch knows, from the same packed file.

    weights      packed, in the device's memory (_torch_weights.py)
    products     in float16 on a GPU, float32 on a CPU, or as asked for; the residual and the norms are float32
    attention    torch's scaled_dot_product_attention (_torch_attention.py)
    a step       on CUDA one graph of all layers, recorded once and replayed: the host says "go" once a token

Needs the extra "torch". Apple's MPS is given operations that its documentation lists, and nobody here could try it.
"""

import contextlib
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from glmcpu import memory
from glmcpu.backends import Batch
from glmcpu.backends import _torch_weights as packed
from glmcpu.backends._torch_attention import Places, TorchCache, attend, place
from glmcpu.errors import MachineError, UsageError, printable
from glmcpu.formats import Weight

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}

Floats = NDArray[np.float32]

_FULL = "out of memory|allocate memory|ALLOC_FAILED"

_entry = threading.RLock()
"""Held by whoever uses a device: a step that is being recorded must not see what other threads do to it."""


class Backend:
    """Operations on `device`, products and attention in `dtype`; `threads` are those of a CPU."""

    def __init__(
        self,
        threads: int | None = None,
        cache: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
    ) -> None:
        """None: the best device there is, float32 on a CPU and float16 elsewhere. Raises UsageError."""
        self.device = device_of(device)
        if threads is not None and not 1 <= threads <= (os.cpu_count() or 1):
            raise UsageError(f"--threads {threads}: this machine runs 1 to {os.cpu_count()} threads")
        self.threads = threads
        cpu = self.device.type == "cpu"
        if dtype is not None and dtype not in DTYPES:
            raise UsageError(f"dtype={printable(dtype)!r}: known are {' '.join(DTYPES)}")
        self.dtype = DTYPES[dtype or ("f32" if cpu else "f16")]
        self._check_cache(cache)
        self._places: tuple[Batch, Places] | None = None
        self._recorded: tuple[Any, list[Tensor], Callable[[], Tensor]] | None = None
        self._compiles = self.device.type == "cuda"
        self._record = _record_graph if self.device.type == "cuda" else None

    def is_compiled(self, formats: Mapping[str, str]) -> bool:
        """torch keeps what it compiles, and does not say so."""
        return True

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """One forward at a time: recorded steps share their memory. No gradients."""
        with self._alone(), torch.inference_mode():
            if self.threads is not None and torch.get_num_threads() != self.threads:
                torch.set_num_threads(self.threads)
            yield

    def repeat(self, x: Tensor, batch: Batch, compute: Callable[[Tensor, Any], Tensor]) -> Floats:
        """Records the step the first time, where the device can, and replays it while shapes stay the same."""
        if self._record is None:
            return self.numbers(compute(x, batch))
        places = place(batch, self.device, steady=True)
        inputs = [x, *places.inputs()]
        if self._recorded is None or self._recorded[0] != places.shape():
            self._recorded = None  # its memory first
            self._recorded = places.shape(), inputs, self._record(lambda: compute(x, places))
        _, kept, again = self._recorded
        for mine, theirs in zip(kept, inputs, strict=True):
            if mine is not theirs:
                mine.copy_(theirs)
        return self.numbers(again())

    def finish(self) -> None:
        """Operations are in order, and whoever reads a result waits for it."""

    def numbers(self, x: Tensor) -> Floats:
        """Copied from the device, as float32."""
        found: Floats = x.float().cpu().numpy()
        return found

    def keep(self, weight: Weight) -> Weight:
        """On the device, packed."""
        with self._alone():
            return packed.keep(weight, self.device)

    def keep_vector(self, values: Floats) -> Tensor:
        """On the device."""
        with self._alone():
            return packed.tensor_of(values, self.device)

    def available_bytes(self) -> int | None:
        """Free memory of the GPU, or of the machine."""
        if self.device.type == "cuda":
            return int(torch.cuda.mem_get_info(self.device)[0])
        return memory.available_bytes()

    def cache_kind(self, formats: Mapping[str, str]) -> str:
        """As the computation is: f32, or two bytes a number."""
        return "f32" if self.dtype == torch.float32 else "f16"

    def new_cache(self, L: int, H: int, D: int, capacity: int, formats: Mapping[str, str]) -> TorchCache:
        """On the device. What was recorded with an earlier one is forgotten, and its memory with it."""
        with self._alone(), torch.inference_mode(False):
            self._recorded = self._places = None
            return TorchCache(L, H, D, capacity, self.dtype, self.device)

    def rows(self, weight: Weight, ids: NDArray[np.int64]) -> Tensor:
        """Rows of the embedding table, float32."""
        return packed.rows(weight, packed.tensor_of(ids, self.device), torch.float32)

    def take(self, x: Tensor, which: NDArray[np.int64]) -> Tensor:
        """Some rows."""
        return x.index_select(0, packed.tensor_of(which, self.device))

    def block(self, residual: list[Tensor], compute: Callable[[list[Tensor]], Tensor]) -> Tensor:
        """Computes it."""
        return compute(residual)

    def in_slabs(self, h: Tensor, O: int, compute: Callable[[Tensor, None], Tensor]) -> Tensor:
        """All tokens at once."""
        return compute(h, None)

    def linear(self, x: Tensor, weight: Weight, out: None = None) -> Tensor:
        """In `dtype`, as its result is."""
        return packed.product(x.to(self.dtype), weight, self._compiles)

    def layer_norm(self, x: Tensor, scale: Tensor, shift: Tensor, epsilon: float) -> Tensor:
        """In float32."""
        return functional.layer_norm(x.float(), scale.shape, scale, shift, epsilon)

    def gelu(self, x: Tensor) -> Tensor:
        """The tanh form."""
        return functional.gelu(x, approximate="tanh")

    def scale_add(self, h: Tensor, alpha: float, y: Tensor) -> Tensor:
        """In float32."""
        return torch.add(y.float(), h, alpha=alpha)

    def attend(self, qkv: Tensor, layer: int, batch: Any, heads: int, parts: int) -> Tensor:
        """_torch_attention.py"""
        return attend(qkv.to(self.dtype), layer, self._placed(batch), heads, parts)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """The device is the thread's current one, and nobody else's."""
        current = torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext()
        with _entry, current, explained(self.device):
            yield

    def _placed(self, batch: Any) -> Places:
        """The batch on the device; the same for all layers."""
        if isinstance(batch, Places):
            return batch
        if self._places is None or self._places[0] is not batch:
            self._places = batch, place(batch, self.device, steady=False)
        return self._places[1]

    def _check_cache(self, cache: str | None) -> None:
        if cache is not None and cache != self.cache_kind({}):
            raise UsageError(
                f"cache={cache!r}: with the torch backend keys and values are kept as they are computed, here "
                f"{self.cache_kind({})}; leave --cache out, or take --backend cpu"
            )


def device_of(name: str | None) -> torch.device:
    """The device of that name, or the best there is; raises UsageError when it is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name is None:
        name = next(kind for kind, is_there in there.items() if is_there)
    kind, _, number = name.partition(":")
    if not re.fullmatch(r"cuda(:[0-9]{1,3})?|mps|cpu", name):
        raise UsageError(f"unknown device {printable(name)!r}; devices: cuda, cuda:N, mps, cpu")
    if not there[kind] or (number and int(number) >= torch.cuda.device_count()):
        have = [kind for kind, is_there in there.items() if is_there]
        raise UsageError(f"torch sees no device {name!r} on this machine; it has: {' '.join(have)}")
    return torch.device(name)


@contextlib.contextmanager
def explained(device: torch.device, remedy: str = "lower --context, or use a smaller weight format") -> Iterator[None]:
    """Makes a full device a MachineError."""
    try:
        yield
    except RuntimeError as error:  # MPS and CPUs have no class of their own for it
        if not isinstance(error, torch.OutOfMemoryError) and not re.search(_FULL, str(error)):
            raise
        raise MachineError(f"no memory left on {device}; close what else uses it, {remedy}") from error


def _record_graph(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A step as a CUDA graph. It is run once before, on a side stream as CUDA asks: nothing may be compiled in it."""
    side = torch.cuda.Stream()  # of the current device, which the caller has chosen
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        out = step()

    def again() -> Tensor:
        graph.replay()
        return out

    return again
