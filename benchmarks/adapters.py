"""What does an adapter cost? Steps of one sequence on the same weights: plain, behind a prefix, with LoRA beside them.

    python benchmarks/adapters.py [MODEL] [--prefix 128] [--rank 8] [--context 128,512] [--tokens 8] [--rounds 12]

MODEL is a packed model, by default random weights of the 6B shape in int4_g32 (3.5 GB of disk while it runs). LoRA is
on the fused matrices (query_key_value) as usual, and in another row on all four kinds. The file is mapped once, and the
variants decode in turn, a step each, in another order every time; the ratio is that of medians. A merged LoRA changes
numbers in the file and nothing at run time. The last line is the same as JSON.
"""

import argparse
import itertools
import json
import random
import statistics
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from glmcpu import backends, bench
from glmcpu.adapters import LowRank, Prefix
from glmcpu.adapters.beside import attach
from glmcpu.model import read_config
from glmcpu.models import Part
from glmcpu.packed import PackedFile
from glmcpu.random_weights import temporary_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--prefix", type=int, default=128)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--context", default="128,512")
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    opened: Any = temporary_model("chatglm-6b", "int4_g32", lambda *_: None)
    with opened if options.model is None else nullcontext((options.model, lambda: None)) as (path, _):
        packed = PackedFile(path)
        generation, config = read_config(packed)
        variants = {
            name: generation.build(config, packed, attach(backends.load("cpu"), prefix, low_rank, packed.formats))
            for name, prefix, low_rank in adapters(generation, config, options.prefix, options.rank)
        }
        rows = []
        for context in map(int, options.context.split(",")):
            rows.append({"context": context, **measure(variants, config, context, options.tokens, options.rounds)})
            for name, row in rows[-1].items():
                if isinstance(row, dict):
                    print(
                        f"context {context:5}   {name:18} {row['ms']:7.1f} ms a token   {row['ratio']:.3f}", flush=True
                    )
    print(json.dumps({"name": "adapters", "prefix": options.prefix, "rank": options.rank, "rows": rows}))


def adapters(generation: Any, config: Any, P: int, r: int) -> Iterator[tuple[str, Prefix | None, dict[str, LowRank]]]:
    """Name, prefix, LoRA of each variant; the numbers do not matter."""
    numbers = np.random.default_rng(0)
    shape = config.layers, P, config.heads, config.channels // config.heads
    prefix = Prefix(*(numbers.standard_normal(shape, np.float32) for _ in range(2)))
    low_rank = {
        name: LowRank(numbers.standard_normal((r, I), np.float32), 1e-3 * numbers.standard_normal((O, r), np.float32))
        for name, (O, I) in generation.matrices(config).items()
        if name.startswith("layers.")
    }
    yield "plain", None, {}
    yield f"prefix of {P}", prefix, {}
    yield "LoRA on qkv", None, {name: pair for name, pair in low_rank.items() if name.endswith(".qkv")}
    yield "LoRA on all", None, low_rank


def measure(variants: dict[str, Any], config: Any, context: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of a step at a context, in turn, and the ratio to the first variant."""
    ids = bench.prompt(config, context)
    states = {}
    for name, model in variants.items():
        cache = model.new_cache(context + tokens + 1)
        model.forward([Part(ids, cache)])
        states[name] = model, cache
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    order = list(variants)
    for _ in range(rounds):
        known = {name: [*ids, ids[0]] for name in variants}
        for _, cache in states.values():
            cache.length = context
        for _, place in itertools.product(range(tokens), range(len(states))):
            if place == 0:
                random.shuffle(order)
            name = order[place]
            model, cache = states[name]
            begin = time.perf_counter()
            known[name].append(int(model.forward([Part(known[name], cache)])[0].argmax()))
            seconds[name].append(time.perf_counter() - begin)
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    first = next(iter(middle.values()))
    return {name: {"ms": round(1e3 * s, 2), "ratio": round(s / first, 4)} for name, s in middle.items()}


if __name__ == "__main__":
    main()
