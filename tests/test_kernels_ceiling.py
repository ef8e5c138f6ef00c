"""The ceilings: all memory is read and all products are made, whatever the compiler would like to skip."""

from typing import Any

import numpy as np
import pytest
from tiny_random import hasty

from glmcpu.errors import UsageError
from glmcpu.kernels import ceiling
from glmcpu.kernels.threads import threads
from glmcpu.simd.operation import Operation
from glmcpu.simd.program import Program

__all__ = ["hasty"]
F32 = np.float32


def _run(op: Operation, items: int, *arguments: Any) -> None:
    program = Program(1)
    program.add(op, items, 1, *arguments)
    program.finish()


def test_every_number_is_read() -> None:
    data = np.random.default_rng(0).integers(0, 8, 3 * ceiling._PIECE).astype(F32)
    sums = np.empty((3, 16), F32)
    _run(ceiling._read, 3, sums, data)
    assert np.array_equal(sums.sum(axis=1), data.reshape(3, -1).sum(axis=1))


@pytest.mark.parametrize("n", ceiling._TILES)
def test_every_dot_product_is_made(n: int) -> None:
    loops, V = 3, ceiling._VECTORS
    weights, x = np.arange(V * 64).astype(np.uint8) % 16, (np.arange(4 * n) - 5).astype(np.int8)
    out = np.zeros((2, ceiling._OUT), F32)
    _run(ceiling._dot, 2, out, loops, n, weights, x, np.zeros(1, np.int32))
    expected = loops * weights.reshape(V, 16, 4).sum(axis=0, dtype=F32) @ x.reshape(n, 4).T.astype(F32)  # (16, n)
    for chunk in out:
        assert np.array_equal(chunk[: 16 * n].reshape(n, 16), expected.T)


@pytest.mark.parametrize("n", ceiling._TILES)
def test_every_multiply_add_is_made(n: int) -> None:
    loops, V = 3, ceiling._VECTORS
    weights, x = (np.arange(V * 16) % 7).astype(F32), np.arange(n).astype(F32)
    out = np.zeros((2, ceiling._OUT), F32)
    _run(ceiling._fma, 2, out, loops, n, weights, x)
    expected = np.outer(x, loops * weights.reshape(V, 16).sum(axis=0))
    for chunk in out:
        assert np.array_equal(chunk[: 16 * n].reshape(n, 16), expected)


@pytest.mark.usefixtures("hasty")
def test_ceilings_are_measured_with_the_threads_asked_for() -> None:
    ceilings = ceiling.Ceilings(1)
    assert ceilings.threads == threads() == 1
    assert ceilings.extra_bytes == 1 << 22
    for speed in (ceilings.read_gb_per_s, ceilings.dot_gmac_per_s, ceilings.fma_gmac_per_s, ceilings.read()):
        assert 1e-3 < speed < 1e6


def test_more_threads_than_the_machine_has_are_refused() -> None:
    with pytest.raises(UsageError, match="--threads 99999"):
        ceiling.Ceilings(99999)
