"""Programs: order, every item once, memory that is used again, and the same numbers for any number of threads."""

import gc
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glmcpu.simd.operation import floats, halves, int32s, int64s, number, operation, signed_bytes, unsigned_bytes
from glmcpu.simd.program import Program

F32 = np.float32
THREADS = pytest.mark.parametrize("threads", [1, 2])


@operation
def add_to(a, worker, begin, end):  # type: ignore[no-untyped-def]  # compiled
    """out[i] = x[i] + amount * times."""
    out, x = floats(a, 0), floats(a, 1)
    for i in range(begin, end):
        out[i] = x[i] + number(a, 2) * a[3]


@operation
def who(a, worker, begin, end):  # type: ignore[no-untyped-def]
    for i in range(begin, end):
        int64s(a, 0)[i] += 1 + 100 * worker


@operation
def widths(a, worker, begin, end):  # type: ignore[no-untyped-def]
    out = floats(a, 0)
    out[0], out[1], out[2] = halves(a, 1)[1], unsigned_bytes(a, 2)[1], signed_bytes(a, 3)[1]
    out[3], out[4], out[5] = int32s(a, 4)[1], int64s(a, 5)[1], number(a, 6)


def plus(program: Program, x: Any, amount: float, grain: int = 3) -> Any:
    out = program.empty(*x.shape)
    program.add(add_to, x.size, grain, out, x, amount, 2)
    return out


@THREADS
def test_operations_run_in_order_when_they_are_finished(threads: int) -> None:
    program, x = Program(threads), np.arange(50, dtype=F32)
    y = x
    for _ in range(40):
        y = plus(program, y, 0.5)
    program.finish()
    assert np.array_equal(y, x + 40)


@THREADS
@pytest.mark.parametrize("items", [0, 1, 2, 7, 64, 1000])
@pytest.mark.parametrize("grain", [1, 3, 5000])
def test_every_item_is_done_once(items: int, grain: int, threads: int) -> None:
    program, counts = Program(threads), np.zeros(items + 1, np.int64)
    program.add(who, items, grain, counts)
    program.finish()
    assert (counts[:items] % 100 == 1).all()
    assert (counts[:items] // 100 < threads).all()
    assert counts[items] == 0


def test_slots_have_the_width_they_are_read_with() -> None:
    program, out = Program(1), np.zeros(6, F32)
    arrays = [np.array([1, n], dtype) for n, dtype in ((7, np.uint16), (200, np.uint8), (-3, np.int8))]
    program.add(widths, 1, 1, out, *arrays, np.array([1, -70000], np.int32), np.array([1, 1 << 24]), -0.125)
    program.finish()
    assert out.tolist() == [7, 200, -3, -70000, 1 << 24, -0.125]


@THREADS
def test_a_prepared_program_runs_again_on_what_the_arrays_then_hold(threads: int) -> None:
    program, x = Program(threads), np.zeros(10, F32)
    y = plus(program, plus(program, x, 1.0), 1.0)
    again = program.prepare()
    for value in (0, 5, -3):
        x[:] = value
        again()
        assert set(y.tolist()) == {value + 4}


@THREADS
def test_memory_of_results_nobody_needs_is_used_again(threads: int) -> None:
    program, x = Program(threads), np.ones(1000, F32)
    kept = [plus(program, x, 1.0)]
    places = set()
    for n in range(30):
        x = plus(program, x, 0.5)
        places.add(x.__array_interface__["data"][0])
        if n == 10:
            kept.append(x)
            program.finish()
    program.finish()
    assert len(places) <= 5
    assert [set(a.tolist()) for a in (*kept, x)] == [{3}, {12}, {31}]


def test_arguments_live_until_they_are_read() -> None:
    program, out = Program(1), np.zeros(1000, F32)
    program.add(add_to, 1000, 1000, out, np.full(1000, 7, F32), 0.0, 0)
    results = plus(program, plus(program, out, 1.0), 1.0)[500:]
    program.finish()
    more = plus(program, results, 0.0)
    del results
    gc.collect()
    junk = [np.full(1000, 1e9, F32) for _ in range(50)]
    program.finish()
    assert len(junk) == 50
    assert set(more.tolist()) == {11}


def test_fewer_threads_than_asked_for_do_all_the_work() -> None:
    code = (
        "import sys, numba; sys.path.insert(0, sys.argv[1]); import numpy as np; from test_simd_program import plus; "
        "from glmcpu.simd.program import Program; numba.set_num_threads(1); p = Program(8); "
        "y = plus(p, plus(p, np.zeros(100, np.float32), 1.0), 1.0); p.finish(); print(set(y.tolist()))"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "{4.0}", done.stderr
