#!/bin/bash
# usage: tests/arm64.sh PYTHON [FILE...]
#
# Runs the tests of words, kernels and formats (or the test files named) under an arm64 Python on each of its ISAs:
# neon_dotprod and portable. On another kind of CPU that is a launcher of an arm64 Python 3.10 or later in QEMU's user
# mode, with numba, numpy and pytest; tests that read model files also need sentencepiece, safetensors, click and
# huggingface_hub (in PYTHONPATH, say). Emulated on one core it takes about 15 minutes when nothing is compiled yet,
# nearly all of it compiling: it checks the arithmetic and says nothing about speed. QEMU orders memory as the host
# does, which on x86 hides races that a real arm64 may show.
set -euo pipefail

python=$(realpath "${1:?usage: tests/arm64.sh PYTHON [FILE...]}")
shift
cd "$(dirname "$0")/.."
shopt -s extglob
[ $# -gt 0 ] || set -- tests/test_simd_*.py tests/test_kernels_!(kept|ceiling).py tests/test_formats*.py

# glmcpu.convert lies beside glmcpu, and only an installation knows that: a folder of links stands for one.
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
mkdir "$stage/glmcpu"
ln -s "$PWD"/glmcpu/* "$PWD/convert" "$stage/glmcpu"
export PYTHONPATH="$stage${PYTHONPATH:+:$PYTHONPATH}"

for isa in neon_dotprod portable; do
    echo "== $isa"
    GLMCPU_ISA=$isa "$python" -m pytest -q -p no:cacheprovider "$@"
done
