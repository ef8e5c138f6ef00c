"""Programs: operations in order, run by a team of threads in one parallel region.

    program = Program(threads)
    program.add(operation, items, grain, array, 7, 0.5)     nothing happens yet; 0.5 travels as float32
    program.finish()                                        now it has: results are in the arrays

Each operation's items are cut into chunks of about `grain`, and each thread has a share of neighbouring chunks, since
memory is fastest read straight on. It takes one after the other (one atomic addition each), then what is left of the
others' shares, and goes on to the next operation when all chunks of this one are done:

    thread 0   norm | matmul 0 1 2 3 | gelu 0 1 .
    thread 1   .... | matmul 4 5 6   | gelu 2 3

So no thread idles while there is work, nothing depends on how many threads really come (a single one does all chunks,
a late one finds them done), and a barrier costs a fraction of a microsecond where leaving and entering a region of
Numba costs up to a hundred. Which thread does a chunk never changes a result: chunks write to different places.

One region at a time in a process: Numba's workqueue layer aborts when two threads enter at once (see kernel.entry).
"""

import math
import platform
import struct
import sys
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from glmcpu.simd.emit import I64, address
from glmcpu.simd.kernel import kernel
from glmcpu.simd.operation import Operation

_LINE = 8  # each counter has a cache line to itself
_PATIENCE = 4096  # turns of a waiting thread before it offers its core to others
_PAUSE = "llvm.x86.sse2.pause" if platform.machine().lower() in ("x86_64", "amd64") else ""
_GIVE_WAY = "" if sys.platform == "win32" else "sched_yield"


class Program:
    """Operations that wait to be run, by at most `threads` threads."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.clear()

    def clear(self) -> None:
        """Forgets everything; results that somebody refers to stay."""
        self._table: list[tuple[int, int, int, int]] = []
        self._slots: list[int] = []
        self._alive: list[Any] = []
        self._free: dict[int, list[memoryview]] = {}

    def empty(self, *shape: int, dtype: type[np.generic] = np.float32) -> NDArray[Any]:
        """Room for a result of an operation.

        When nothing in Python refers to it any more, later results get the same memory: operations run in order, so
        whoever reads it has run by then.
        """
        size = -(-math.prod(shape) * np.dtype(dtype).itemsize // 64) * 64
        size = min((n for n, buffers in self._free.items() if n >= size and buffers), default=size)
        free = self._free.setdefault(size, [])
        buffer = free.pop() if free else _aligned(size)
        self._alive.append(buffer)
        # An array over a memoryview is the base of all its views, so it lives as long as they do.
        array = np.frombuffer(buffer, dtype, math.prod(shape))
        self._alive.append(weakref.ref(array, lambda _: free.append(buffer)))
        return array.reshape(shape)

    def add(self, operation: Operation, items: int, grain: int, *arguments: NDArray[Any] | int | float) -> None:
        """Appends items 0..items of an operation; `grain` items are worth a chunk. Arrays must be C-contiguous."""
        chunks = max(1, min(items, -(-items // grain))) if self.threads > 1 else 1
        self._table.append((operation.address, items, chunks, len(self._slots)))
        for value in arguments:
            if isinstance(value, np.ndarray):
                memory = value.base.base if isinstance(value.base, np.ndarray) else None
                self._alive.append(memory if isinstance(memory, memoryview) else value)
                self._slots.append(value.__array_interface__["data"][0])
            elif isinstance(value, float):
                self._slots.append(struct.unpack("<i", struct.pack("<f", value))[0])
            else:
                self._slots.append(value)

    def finish(self) -> None:
        """Runs what was added since the last time and forgets it; memory of results is still used again."""
        if self._table:
            self.prepare()()
            self._table, self._slots, self._alive = [], [], []

    def prepare(self) -> Callable[[], None]:
        """A function that runs all operations, as often as it is called, on what the arrays then hold."""
        table, slots = np.array(self._table, np.int64), np.array(self._slots, np.int64)
        counters = np.zeros(len(table) * (self.threads + 1) * _LINE, np.int64)

        def run() -> None:
            counters[:] = 0
            if self.threads > 1:
                _run_parallel(table, slots, counters, self.threads)
            else:
                _work(table, slots, counters, 0, 1)

        return run


def _aligned(size: int) -> memoryview:
    """Memory that begins at a cache line."""
    raw = np.empty(size + 64, np.uint8)
    begin = -raw.__array_interface__["data"][0] % 64
    return raw[begin : begin + size].data


@kernel()
def _work(table, slots, counters, worker, workers):
    """Thread `worker` of the team: chunk after chunk, operation after operation."""
    for n in range(table.shape[0]):
        function, items, chunks, first = table[n, 0], table[n, 1], table[n, 2], table[n, 3]
        done = n * (workers + 1) * _LINE
        for turn in range(workers):
            share = (worker + turn) % workers
            begin, end = chunks * share // workers, chunks * (share + 1) // workers
            taken = done + (share + 1) * _LINE
            while True:
                chunk = begin + _fetch_add(counters, taken)
                if chunk >= end:
                    break
                _call(function, slots, first, worker, items * chunk // chunks, items * (chunk + 1) // chunks)
                _fetch_add(counters, done)
        turns = 0
        while _read(counters, done) < chunks:
            turns += 1
            if turns < _PATIENCE:
                _pause()
            else:
                _give_way()


@kernel(parallel=True)
def _run_parallel(table, slots, counters, workers):
    for worker in prange(workers):
        _work(table, slots, counters, worker, workers)


@intrinsic
def _call(context: Any, function: Any, slots: Any, first: Any, worker: Any, begin: Any, end: Any) -> Any:
    """Calls the operation at an address with the arguments from slot `first` on."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        function, slots, first, worker, begin, end = args
        a = address(context, builder, signature.args[1], slots, first)
        kind = ir.FunctionType(ir.VoidType(), [a.type, I64, I64, I64])
        builder.call(builder.inttoptr(function, kind.as_pointer()), [a, worker, begin, end])
        return context.get_dummy_value()

    whole = types.int64
    return types.void(whole, slots, whole, whole, whole, whole), emit


@intrinsic
def _fetch_add(context: Any, counters: Any, index: Any) -> Any:
    """counters[index] += 1 for all threads; returns what it was."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        pointer = address(context, builder, signature.args[0], *args)
        return builder.atomic_rmw("add", pointer, ir.Constant(I64, 1), "acq_rel")

    return types.int64(counters, types.int64), emit


@intrinsic
def _read(context: Any, counters: Any, index: Any) -> Any:
    """counters[index] as the other threads have left it, and everything they wrote before."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return builder.load_atomic(address(context, builder, signature.args[0], *args), "acquire", 8)

    return types.int64(counters, types.int64), emit


def _signal(function: str, result: ir.Type, doc: str) -> Any:
    """A word that calls a function without arguments; none where the name is empty."""

    def word(context: Any) -> Any:
        def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            if function:
                kind = ir.FunctionType(result, [])
                builder.call(cgutils.get_or_insert_function(builder.module, kind, function), [])
            return context.get_dummy_value()

        return types.void(), emit

    word.__doc__ = doc
    return intrinsic(word)


_pause = _signal(_PAUSE, ir.VoidType(), "Tells the CPU that this is a waiting loop.")
_give_way = _signal(_GIVE_WAY, ir.IntType(32), "Offers the core to others: who is waited for may be without one.")
