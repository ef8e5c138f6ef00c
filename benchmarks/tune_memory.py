"""How much memory does tuning the 6B shape take, and does a training that goes on end in the same bits?

    python benchmarks/tune_memory.py [MODEL] [--prefix 128] [--source 64] [--target 64] [--batch 1] [--checkpointing]
                                     [--device cpu] [--dtype f32]

MODEL is a packed model, by default random weights of the 6B shape in int4_g32 (3.5 GB of disk while it runs). Two steps
with one example of the full length each, in one process; and the second of them again in another process, from the
state that was saved after the first. Both prefixes must be equal to the bit. The peak is that of the process: mapped
weights that were read, torch and everything else. The last line is the same as JSON.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from glmcpu.random_weights import temporary_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--prefix", type=int, default=128)
    parser.add_argument("--source", type=int, default=64)
    parser.add_argument("--target", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype")
    parser.add_argument("--worker", nargs=2, metavar=("FOLDER", "STEPS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    opened: Any = temporary_model("chatglm-6b", "int4_g32", lambda *_: None)
    with (
        tempfile.TemporaryDirectory() as folder,
        opened if options.model is None else nullcontext((options.model, lambda: None)) as (path, _),
    ):
        found = [
            worker(path, Path(folder) / name, steps) for name, steps in (("whole", "2"), ("parts", "1"), ("parts", "2"))
        ]
    whole, first, second = found
    equal = whole["digest"] == second["digest"] != first["digest"]
    print(f"peak {whole['peak_bytes'] / 1e9:.2f} GB, {whole['step_s']:.0f} s a step; resumed equal to the bit: {equal}")
    print(json.dumps({"name": "tune_memory", "resumed_equal": equal, "whole": whole, "resumed": second}))


def worker(path: Path, folder: Path, steps: str) -> dict[str, Any]:
    arguments = [argument for argument in sys.argv[1:] if argument != str(path)]
    command = [sys.executable, __file__, str(path), *arguments, "--worker", str(folder), steps]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return result


def work(options: argparse.Namespace) -> None:
    """Trains to a step, from a state if there is one; the last line says what came of it."""
    import torch

    from glmcpu.backends.torch_training import Backend
    from glmcpu.model import read_config
    from glmcpu.packed import PackedFile
    from glmcpu.peak_memory import peak_rss_bytes
    from glmcpu.tuning import Settings
    from glmcpu.tuning.data import Example, Examples
    from glmcpu.tuning.state import FILE
    from glmcpu.tuning.training import Trainer

    folder, steps = Path(options.worker[0]), int(options.worker[1])
    _, config = read_config(PackedFile(options.model))
    random, known = np.random.default_rng(0), []
    for _ in range(3):
        question, answer = (random.integers(5, 100_000, n - 2).tolist() for n in (options.source, options.target))
        ids = [*question, 5, config.gmask, config.bos, *answer, config.eos]
        known.append(Example(ids, ids.index(config.bos)))
    settings = Settings(
        prefix_tokens=options.prefix,
        batch=options.batch,
        accumulation=1,
        steps=2,
        save_every=1,
        source_tokens=options.source,
        target_tokens=options.target,
        checkpointing=options.checkpointing,
    )
    backend = Backend(options.device, options.dtype, options.checkpointing)
    trainer = Trainer(options.model, folder, Examples(known, 0, 0), None, settings, backend)
    if (folder / FILE).exists():
        trainer.resume()
    begin, begun = time.perf_counter(), trainer.state.step
    while trainer.state.step < steps:
        trainer.state.losses.append(trainer._step())
        trainer._keep()
    step_s = (time.perf_counter() - begin) / (trainer.state.step - begun)
    digest = hashlib.sha256(trainer.encoder.embedding.weight.detach().cpu().numpy().tobytes()).hexdigest()
    peak = peak_rss_bytes() if options.device == "cpu" else torch.cuda.max_memory_allocated()
    print(json.dumps({"peak_bytes": peak, "step_s": step_s, "digest": digest, "losses": trainer.state.losses}))


if __name__ == "__main__":
    main()
