"""The choice of the instruction set, and the words every ISA file has to define."""

import inspect
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from glmcpu.simd import isa

SHOW = (
    "import numba; from glmcpu.simd import isa; import numpy as np; from glmcpu.kernels.activations import scale_add; "
    "print(isa.name, numba.config.CPU_NAME, scale_add(np.ones((1, 3), np.float32), 2.0, np.ones((1, 3), np.float32)))"
)


def _run(code: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )


def test_every_isa_file_is_listed() -> None:
    files = {p.stem for p in Path(isa.__file__).parent.glob("*.py")}
    assert set(isa.NAMES) == files - {"__init__", "emit", "isa", "kernel", "tile", "vector"}


@pytest.mark.parametrize("name", isa.NAMES)
def test_every_isa_defines_the_same_words(name: str) -> None:
    module, portable = import_module(f"glmcpu.simd.{name}"), import_module("glmcpu.simd.portable")
    for word in ("dot_nibbles", "dot_bytes", "widen", "narrow"):
        assert inspect.signature(getattr(module, word)) == inspect.signature(getattr(portable, word))
    assert isinstance(module.FEATURES, tuple)
    assert module.OFFSET in (0, 128)
    assert module.TILE >= 1


def test_portable_runs_everywhere_and_comes_last() -> None:
    assert isa.available()[-1] == isa.NAMES[-1] == "portable"
    assert isa.name in isa.available()


@pytest.mark.skipif(bool(os.environ.get("GLMCPU_ISA")), reason="an ISA is forced")
def test_the_best_one_is_chosen() -> None:
    assert isa.name == isa.available()[0]


def test_an_isa_this_machine_does_not_have_is_refused_with_those_it_has() -> None:
    done = _run("import glmcpu.simd.isa", GLMCPU_ISA="sse9\x1b")
    assert done.returncode == 1
    words = " ".join(isa.available())
    assert done.stderr.splitlines()[-1] == (
        f"glmcpu.errors.UsageError: GLMCPU_ISA=sse9\\x1b: this machine has {words}; unset it or name one"
    )


def test_a_forced_isa_holds_the_compiler_to_its_cpu() -> None:
    done = _run(SHOW, GLMCPU_ISA="portable")
    best = isa.available()[0] == "portable"
    assert done.stdout.split()[:2] == ["portable", "None" if best else import_module("glmcpu.simd.portable").CPU]


def test_a_cpu_named_to_numba_cannot_lack_what_the_words_need() -> None:
    done = _run(SHOW, GLMCPU_ISA="", NUMBA_CPU_NAME="generic")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [isa.available()[0], "None", "[[3.", "3.", "3.]]"]
