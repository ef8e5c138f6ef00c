"""All kernels of a conversation together: kept on disk once compiled, and safe to call from any thread."""

import os
import subprocess
import sys
from pathlib import Path

from tiny_checkpoint import write_checkpoint

CONVERSATION = """
import sys
from numba.core import event
from glmcpu import Model
from glmcpu.convert import convert
with event.install_recorder("numba:compile") as recorder:
    for weights in ("int4_g32", "f16"):
        model = Model.load(convert(sys.argv[1], sys.argv[2], weights=weights))
        list(model.generate(model.tokenizer.encode("a" * 40), max_new_tokens=3))
print(len(recorder.buffer))
"""
TWO_THREADS = """
import threading, numpy as np
from glmcpu.kernels import activations
from glmcpu.kernels.threads import threading_layer
from glmcpu.simd.program import Program
def gelu(x):
    program = Program(2)
    activations.gelu(program, x)
    program.finish()
    return x
x = np.linspace(-9, 9, 1 << 17, dtype=np.float32)
expected, wrong = gelu(x.copy()), []
def work():
    for _ in range(100):
        if not np.array_equal(gelu(x.copy()), expected):
            wrong.append(1)
workers = [threading.Thread(target=work) for _ in range(4)]
[w.start() for w in workers]
[w.join() for w in workers]
print(threading_layer(), len(wrong))
"""


def run(code: str, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    paths = str(write_checkpoint(tmp_path / "checkpoint")), str(tmp_path / "model.safetensors")
    run(CONVERSATION, *paths)
    assert run(CONVERSATION, *paths) == "0"


def test_parallel_kernels_of_several_threads_take_turns() -> None:
    assert run(TWO_THREADS, NUMBA_THREADING_LAYER="workqueue") == "workqueue 0"
