"""How many tokens a second, and how close to the machine's limit?

    python benchmarks/tokens.py MODEL [--threads N] [--tokens N] [--prompts 128,512]

Prefill reads the prompt in one pass and is bound by arithmetic; decode reads every weight for one token and is bound by
memory. So its ceiling is the speed at which this machine reads memory, measured before and after each row, over the
bytes of the weights. Prompts are random ids. Medians over the tokens of one run; the last line is the same as JSON.
"""

import argparse
import json
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit, prange

import glmcpu
from glmcpu import store
from glmcpu.backends.cpu import machine
from glmcpu.model import describe

REPEATS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--prompts", default="128,512,1900")
    options = parser.parse_args()
    begin = time.perf_counter()
    model = glmcpu.Model.load(options.model, threads=options.threads)
    load_s = time.perf_counter() - begin
    model.compile()
    found, here = describe(store.find(options.model)), machine()
    size_gb = found.file_bytes / 1e9
    print(f"tokens    {found.weights}   {here['isa']}   {here['threads']} threads   {here['threading_layer']}")
    print(f"model     {size_gb:.2f} GB, read once for each token: ceiling = GB/s of the memory / {size_gb:.2f}")
    print(
        "\n  prompt   prefill tok/s   first token s   read GB/s   ceiling   decode tok/s   ms p50    p90   of ceiling"
    )
    rows = []
    for prompt in options.prompts.split(","):
        before = memory_speed()
        row = measure(model, int(prompt), options.tokens)
        read_gb_per_s = (before + memory_speed()) / 2  # the machine may be shared: its speed drifts
        row |= {"read_gb_per_s": round(read_gb_per_s, 1), "ceiling_tokens_per_s": round(read_gb_per_s / size_gb, 2)}
        row["of_ceiling"] = round(row["decode_tokens_per_s"] * size_gb / read_gb_per_s, 3)
        rows.append(row)
        print(
            f"  {row['prompt']:6d}   {row['prefill_tokens_per_s']:13.1f}   {row['first_token_s']:13.2f}   "
            f"{read_gb_per_s:9.1f}   {row['ceiling_tokens_per_s']:7.1f}   {row['decode_tokens_per_s']:12.2f}   "
            f"{row['ms_p50']:6.1f} {row['ms_p90']:6.1f}   {row['of_ceiling']:10.0%}"
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"\n  peak memory {peak / 1e9:.2f} GB   opened in {load_s:.2f} s")
    result = {"name": "tokens", "model": Path(options.model).name, "format": found.weights, **here}
    print(json.dumps(result | {"peak_rss_bytes": peak, "rows": rows}))


def measure(model: glmcpu.Model, prompt: int, tokens: int) -> dict[str, Any]:
    rng = np.random.default_rng(prompt)
    config = model.config
    ids = [*rng.integers(5, config.mask, prompt - 2).tolist(), config.gmask, config.bos]
    seconds, begin = [], time.perf_counter()
    for _ in model.generate(ids, max_new_tokens=tokens):
        now = time.perf_counter()
        seconds.append(now - begin)
        begin = now
    first, rest = seconds[0], sorted(seconds[1:])
    return {
        "prompt": prompt,
        "first_token_s": round(first, 3),
        "prefill_tokens_per_s": round(prompt / first, 2),
        "decode_tokens_per_s": round(1 / statistics.median(rest), 2),
        "ms_p50": round(1e3 * statistics.median(rest), 1),
        "ms_p90": round(1e3 * rest[int(0.9 * len(rest))], 1),
    }


def memory_speed() -> float:
    """GB/s at which the kernels' threads read memory: the sum of 1 GB, the best of a few."""
    data = np.ones(1 << 27, np.uint64)
    total(data)
    best = min(timed(data) for _ in range(REPEATS))
    return data.nbytes / 1e9 / best


def timed(data: np.ndarray) -> float:
    begin = time.perf_counter()
    total(data)
    return time.perf_counter() - begin


@njit(parallel=True)
def total(data: np.ndarray) -> np.uint64:
    result = np.uint64(0)
    for i in prange(data.size):
        result += data[i]
    return result


if __name__ == "__main__":
    main()
