"""The words of AVX-VNNI in both encodings: as a laptop runs them, and as a machine with AVX-512 tests them."""

import pytest
from assembly import BYTES, FLOATS, HALVES, INTS, X86, Word, assembly

from glmcpu.simd import avx_vnni

# The second is what a forced run uses on a machine with AVX-512 but not AVX-VNNI.
VEX = ("alderlake", "")
EVEX = ("haswell", "+avx512vl,+avx512vnni,+prefer-256-bit")


@pytest.mark.parametrize(("cpu", "features"), [VEX, EVEX, ("haswell", "+avxvnni")])
@pytest.mark.parametrize("word", [avx_vnni.dot_nibbles, avx_vnni.dot_bytes])
def test_64_bytes_are_two_dots_in_registers_of_256_bits(word: Word, cpu: str, features: str) -> None:
    lines = assembly(word, [INTS, BYTES, BYTES], INTS, X86, cpu, features)
    dots = [line for line in lines if "vpdpbusd" in line]
    assert len(dots) == 2
    assert all("ymm" in line and "zmm" not in line for line in dots)


@pytest.mark.parametrize("word", [avx_vnni.dot_nibbles, avx_vnni.dot_bytes])
def test_a_laptop_gets_the_encoding_it_has_and_no_register_it_lacks(word: Word) -> None:
    lines = assembly(word, [INTS, BYTES, BYTES], INTS, X86, *VEX)
    assert all(line.startswith("{vex}") for line in lines if "vpdpbusd" in line)
    assert not any("zmm" in line for line in lines)


def test_moving_bytes_to_the_unsigned_side_costs_one_instruction_a_register() -> None:
    nibbles, bytes_ = (
        assembly(word, [INTS, BYTES, BYTES], INTS, X86, *VEX) for word in (avx_vnni.dot_nibbles, avx_vnni.dot_bytes)
    )
    assert sum("xor" in line for line in bytes_) == 2
    assert not any("xor" in line or "sign" in line for line in nibbles)


def test_halves_are_converted_in_hardware() -> None:
    assert sum("vcvtph2ps" in line for line in assembly(avx_vnni.widen, [HALVES], FLOATS, X86, *VEX)) == 2
    assert sum("vcvtps2ph" in line for line in assembly(avx_vnni.narrow, [FLOATS], HALVES, X86, *VEX)) == 2


def test_a_forced_run_asks_for_no_more_than_the_machine_must_have() -> None:
    asked = {feature.lstrip("+") for feature in avx_vnni.CPU_FEATURES.split(",")}
    assert asked - {"prefer-256-bit"} <= set(avx_vnni.FEATURES)
