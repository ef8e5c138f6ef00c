"""How long does calibration take for ChatGLM-6B, and how much memory?

    python benchmarks/calibrate.py [--tokens N] [--weights FORMAT] [--threads N] [--checkpoint FOLDER]

One layer of the full shape with random weights (2.5 GB on disk, written to a temporary folder, or once to FOLDER) reads
random ids and is rounded, then the output matrix. All 28 layers take 28 times the one, and the output matrix once more;
numbers do not change the time. Peak memory is the process's own (ru_maxrss). The last line is the same as JSON.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from random_checkpoint import write_checkpoint

from glmcpu.convert import CALIBRATION_TOKENS, _opened, calibrate, gptq, work_folder
from glmcpu.convert.layer_by_layer import Text
from glmcpu.kernels.threads import set_threads
from glmcpu.models.chatglm import Config
from glmcpu.peak_memory import peak_rss_bytes

LAYERS, SEQUENCE = 28, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=CALIBRATION_TOKENS)
    parser.add_argument("--weights", default="int4_g32")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--checkpoint", type=Path)
    options = parser.parse_args()
    threads = set_threads(options.threads)
    temporary = tempfile.TemporaryDirectory() if options.checkpoint is None else nullcontext(options.checkpoint)
    with temporary as place, tempfile.TemporaryDirectory() as work:
        folder = Path(place)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "config.json").exists():
            write_checkpoint(folder, 1, 0)
        steps, stages = run(folder, Path(work) / "model", options.tokens, options.weights)
    layer_s = stages["calibrating layer 1 of 1"]
    head_s = stages["calibrating the output matrix"]
    peak = peak_rss_bytes()
    print(f"{options.weights}, {options.tokens:,} tokens, {threads} threads")
    for name, seconds in steps.items():
        print(f"  {name:40} {seconds:8.1f} s")
    print(f"  one layer {layer_s:.0f} s, the output matrix {head_s:.0f} s, peak memory {(peak or 0) / 1e6:,.0f} MB")
    total_s = LAYERS * layer_s + head_s
    print(f"  {LAYERS} layers and the output matrix: {total_s / 3600:.1f} h")
    result = {"name": "calibrate", "weights": options.weights, "tokens": options.tokens, "threads": threads}
    seconds_of = {"layer_s": round(layer_s, 1), "head_s": round(head_s, 1), "total_s": round(total_s)}
    print(json.dumps({**result, **seconds_of, "peak_rss_bytes": peak}))


def run(folder: Path, target: Path, tokens: int, weights: str) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of each step, over both stages, and of each stage."""
    steps: dict[str, float] = {}
    stages: dict[str, float] = {}
    with _opened(folder, "") as origin:
        text = random_text(origin.config, tokens)
        residual = 2 * text.tokens, origin.config.channels
        begin = last = time.perf_counter()

        def advance(stage: str, done: int, total: int) -> None:
            nonlocal last
            now = time.perf_counter()
            stages[stage] = stages.get(stage, 0.0) + now - last
            last = now

        with (
            patch.object(gptq, "prepare", timed(gptq.prepare, "moments and their factor", steps)),
            patch.object(gptq, "round_rows", timed(gptq.round_rows, "rounding", steps)),
            work_folder.opened(target, "benchmark", origin.config.layers, residual) as work,
        ):
            calibrate.run(origin, dict.fromkeys(origin.sources, weights), text, work, advance)
        steps["forward, reading and writing"] = time.perf_counter() - begin - sum(steps.values())
    return steps, stages


def random_text(config: Config, tokens: int) -> Text:
    """Sequences of SEQUENCE ids, the first half context."""
    random = np.random.default_rng(0)
    half, sequences, predicted = SEQUENCE // 2, [], []
    for begin in range(0, tokens, SEQUENCE):
        ids = random.integers(0, config.mask, SEQUENCE)
        ids[half - 2 : half] = config.gmask, config.bos
        sequences.append([int(i) for i in ids])
        predicted.append(np.arange(begin + half - 1, begin + SEQUENCE - 1))
    return Text(sequences, np.concatenate(predicted))


def timed(function: Callable[..., Any], name: str, steps: dict[str, float]) -> Callable[..., Any]:
    """The function, its seconds added to a step."""

    def call(*arguments: Any) -> Any:
        begin = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            steps[name] = steps.get(name, 0.0) + time.perf_counter() - begin

    return call


if __name__ == "__main__":
    main()
