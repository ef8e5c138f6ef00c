"""The tests of words, kernels and formats once more on every other ISA of this machine, each in its own process.

A process has one ISA, chosen when it starts; forcing another holds the compiler to a CPU of that kind.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from glmcpu.simd import isa

HERE = Path(__file__).parent
# Left out is what does not depend on the ISA chosen: choosing, threads, files, assembly.
ONCE = {
    "test_simd_avx_vnni.py",
    "test_simd_neon_dotprod.py",
    "test_simd_isa.py",
    "test_simd_kernel.py",
    "test_kernels_threads.py",
    "test_kernels_kept.py",
}
PATTERNS = ("test_simd_*.py", "test_kernels_*.py", "test_formats*.py")
FILES = sorted(str(p) for pattern in PATTERNS for p in HERE.glob(pattern) if p.name not in ONCE)


@pytest.mark.skipif(bool(os.environ.get("GLMCPU_ISA")), reason="an ISA is forced: this run is about that one")
@pytest.mark.parametrize("name", isa.available()[1:])
def test_words_kernels_and_formats_hold_on(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", *FILES],
        env={**os.environ, "GLMCPU_ISA": name},
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
