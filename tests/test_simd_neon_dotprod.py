"""The words of arm64's dot product, compiled for two such CPUs on any machine; tests/arm64.sh runs them."""

import pytest
from assembly import ARM, BYTES, FLOATS, HALVES, INTS, Word, assembly

from glmcpu.simd import neon_dotprod

# A laptop, a server, and the least that has the feature: what LLVM is asked for on a CPU it does not know.
CPUS = [("apple-m1", ""), ("neoverse-n2", ""), ("generic", "+dotprod")]


def _names(lines: list[str]) -> list[str]:
    return [line.split()[0] for line in lines]


@pytest.mark.parametrize(("cpu", "features"), CPUS)
@pytest.mark.parametrize("word", [neon_dotprod.dot_nibbles, neon_dotprod.dot_bytes])
def test_64_bytes_are_four_dots_and_nothing_else_but_loads_and_stores(word: Word, cpu: str, features: str) -> None:
    lines = assembly(word, [INTS, BYTES, BYTES], INTS, ARM, cpu, features)
    dots = [line for line in lines if line.startswith("sdot")]
    assert len(dots) == 4
    assert all(".4s" in line and ".16b" in line for line in dots)
    assert set(_names(lines)) <= {"sdot", "ldp", "ldr", "stp", "str", "ret"}


@pytest.mark.parametrize(("cpu", "features"), CPUS)
def test_halves_are_converted_in_hardware_without_a_helper_function(cpu: str, features: str) -> None:
    widen = _names(assembly(neon_dotprod.widen, [HALVES], FLOATS, ARM, cpu, features))
    assert (widen.count("fcvtl"), widen.count("fcvtl2")) == (2, 2)
    narrow = _names(assembly(neon_dotprod.narrow, [FLOATS], HALVES, ARM, cpu, features))
    assert (narrow.count("fcvtn"), narrow.count("fcvtn2")) == (2, 2)
    assert not {"b", "bl", "blr"} & {*widen, *narrow}
