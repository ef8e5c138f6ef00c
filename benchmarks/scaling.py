"""How do prefill and decode grow with threads, and how do they fall with the length of the context?

    python benchmarks/scaling.py MODEL|chatglm-6b [--threads 1,2] [--contexts 128,512,1900,4096] [--weights FORMAT]

The rows of `glmcpu bench`, once for each number of threads, each against the ceiling of as many threads. `speed-up` is
against the first number of threads in the list. The last line is the same as JSON.
"""

import argparse
import contextlib
import json
from dataclasses import asdict
from pathlib import Path

from glmcpu import bench, random_weights, store
from glmcpu.kernels.ceiling import Ceilings
from glmcpu.kernels.threads import physical_cores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--threads", type=numbers, default=tuple(range(1, physical_cores() + 1)))
    parser.add_argument("--contexts", type=numbers, default=(128, 512, 1900, 4096))
    parser.add_argument("--weights", default="int4_g32", help="of a published architecture")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    plan = bench.Plan(options.contexts, options.contexts, (1,), options.tokens, options.repeats)
    with contextlib.ExitStack() as stack:
        if options.model in random_weights.PUBLISHED:
            made = random_weights.temporary_model(options.model, options.weights, lambda *_: None)
            path, _ = stack.enter_context(made)
        else:
            path = store.find(options.model)
        runs = [measured(path, plan, threads) for threads in options.threads]
    for what in ("prefill", "decode"):
        table(what, runs)
    print(json.dumps({"name": "scaling", "runs": [asdict(run) for run in runs]}))


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def measured(path: Path, plan: bench.Plan, threads: int) -> bench.Run:
    *_, run = bench.measure(path, plan, Ceilings(threads))
    if not isinstance(run, bench.Run):
        raise SystemExit("nothing was measured")
    return run


def table(what: str, runs: list[bench.Run]) -> None:
    """One line for each length, one column for each number of threads."""
    print(
        f"\n{what:8}" + "".join(f"{f'{run.threads} threads: tok/s':>20}{'speed-up':>10}{'ceiling':>9}" for run in runs)
    )
    columns = [run.prefill if what == "prefill" else run.decode for run in runs]
    for rows in zip(*columns, strict=True):
        first = rows[0]
        length = first.tokens if isinstance(first, bench.Prefill) else first.context
        cells = (f"{r.tok_per_s:20.2f}{r.tok_per_s / first.tok_per_s:10.2f}{r.of_ceiling:9.0%}" for r in rows)
        print(f"{length:8}" + "".join(cells))


if __name__ == "__main__":
    main()
