"""The choice of the instruction set, and the words every ISA file has to define."""

import inspect
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from llvmlite.binding.targets import FeatureMap

from glmcpu.simd import isa

# Prints the ISA, the CPU that LLVM is held to, and what two words that differ between ISAs make of 1.5 and 3 x 4 x 5.
SHOW = """
import numba
import numpy as np
from glmcpu.simd import isa
from glmcpu.simd.tile import OFFSET, tile_dot_bytes, tile_offsets, tile_scaled, tile_store, tile_sums, tile_total, zeros
from glmcpu.simd.vector import as_half, load_bytes, splat

@numba.njit
def show(out, one, w, x, offsets):
    ints = tile_dot_bytes(tile_offsets(zeros(1), offsets, 0, 0), load_bytes(w, 0), x, 0, 0)
    acc = tile_scaled(zeros(1), ints, splat(one[0]), one, 0, 0)
    tile_store(out, 0, 0, acc, splat(one[0]), as_half(splat(np.float32(1.5))), 16)

out, w, x = np.empty(16, np.float32), np.full(64, 3, np.uint8), np.full(4, 5, np.int8)
show(out, np.ones(1, np.float32), w, x, np.full(1, -OFFSET * 20, np.int32))
print(isa.name, numba.config.CPU_NAME, out[0], out[15])
"""


def _run(code: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )


def test_every_isa_file_is_listed() -> None:
    files = {p.stem for p in Path(isa.__file__).parent.glob("*.py") if "\nFEATURES" in p.read_text(encoding="utf-8")}
    assert set(isa.NAMES) == files


@pytest.mark.parametrize("name", isa.NAMES)
def test_every_isa_defines_the_same_words(name: str) -> None:
    module, portable = import_module(f"glmcpu.simd.{name}"), import_module("glmcpu.simd.portable")
    for word in ("dot_nibbles", "dot_bytes", "widen", "narrow", "fma"):
        assert inspect.signature(getattr(module, word)) == inspect.signature(getattr(portable, word))
    assert isinstance(module.FEATURES, tuple)
    assert module.OFFSET in (0, 128)
    assert module.NIBBLE_BITS in (16, 32)
    assert hasattr(module, "add_pairs") == (module.NIBBLE_BITS == 16)
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


@pytest.mark.parametrize("name", isa.NAMES)
def test_a_forced_isa_holds_the_compiler_to_its_cpu(name: str) -> None:
    module = import_module(f"glmcpu.simd.{name}")
    assert isa._target(module, held=True) == (module.CPU, module.CPU_FEATURES)


@pytest.mark.parametrize("name", isa.available()[1:])
def test_a_forced_isa_computes(name: str) -> None:
    done = _run(SHOW, GLMCPU_ISA=name)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [name, import_module(f"glmcpu.simd.{name}").CPU or "None", "61.5", "61.5"]


def test_a_cpu_named_to_numba_cannot_lack_what_the_words_need() -> None:
    done = _run(SHOW, GLMCPU_ISA="", NUMBA_CPU_NAME="generic")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [isa.available()[0], "None", "61.5", "61.5"]


def test_the_dot_product_of_arm64_is_found_where_llvm_does_not_see_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = import_module("numpy._core._multiarray_umath").__cpu_features__
    monkeypatch.setattr(isa.platform, "machine", lambda: "aarch64")
    for system, dotprod, found in (("Linux", False, False), ("Linux", True, True), ("Darwin", False, True)):
        monkeypatch.setattr(isa.platform, "system", lambda system=system: system)
        monkeypatch.setitem(seen, "ASIMDDP", dotprod)
        assert ("neon_dotprod" in isa.available()) == found
    monkeypatch.setattr(isa.platform, "machine", lambda: "x86_64")
    assert "neon_dotprod" not in isa.available()


def test_llvm_is_told_what_it_does_not_see_and_keeps_the_rest_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    neon, portable = import_module("glmcpu.simd.neon_dotprod"), import_module("glmcpu.simd.portable")
    monkeypatch.setattr(isa, "_unseen", lambda: {"dotprod"})
    monkeypatch.setattr(isa.binding, "get_host_cpu_features", lambda: FeatureMap({"crc": True, "dotprod": False}))
    assert isa._target(neon, held=False) == (None, "+crc,+dotprod")
    assert isa._target(portable, held=False) == (None, None)
