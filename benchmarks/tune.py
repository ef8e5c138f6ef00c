"""Is the embedded model taught a new way to answer from 200 examples, and how long does that take on this CPU?

    python benchmarks/tune.py [--steps 2400] [--batch 8] [--prefix 128] [--threads N] [--weights int4_g32]

The new way is a persona with a fixed form: whatever Momo is asked, in English or Chinese, she answers "Momo: [..]".
The examples are questions of the demo's corpus without history, their answers in that form; 20 more are the validation.
Then the held-out script of demo/, whose names, numbers and wordings training never saw, is asked before and after,
greedily: how many answers have the form, how many of them are right, and whether the torch backend and the CPU backend
give the same ones. The base file must not have changed. The last line is the same as JSON.
"""

import argparse
import hashlib
import itertools
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from demo.corpus import examples, held_out
from demo.example import Example
from glmcpu import Model, store
from glmcpu.convert import convert
from glmcpu.tuning import Report, Settings, tune

NAME, END = "Momo: [", "]"
TRAINED, VALIDATED, SEED = 200, 20, 99


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--prefix", type=int, default=128)
    parser.add_argument("--rate", type=float, default=3e-2)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--weights", default="int4_g32")
    parser.add_argument("--per-topic", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = convert(store.embedded(), folder / "base.safetensors", weights=options.weights)
        before, begin = hashlib.sha256(base.read_bytes()).hexdigest(), time.perf_counter()
        state = tune(
            write(folder / "train.jsonl", alone(examples(SEED), TRAINED)),
            base,
            folder / "momo",
            validation=write(folder / "validation.jsonl", alone(examples(SEED + 1), VALIDATED)),
            settings=Settings(
                prefix_tokens=options.prefix,
                steps=options.steps,
                batch=options.batch,
                accumulation=1,
                learning_rate=options.rate,
                save_every=max(1, options.steps // 6),
            ),
            threads=options.threads,
            report=show,
        )
        seconds = time.perf_counter() - begin
        asked = alone(held_out(7, options.per_topic), 10**6)
        told = {
            which: answers(Model.load(base, threads=options.threads, **loading), asked)
            for which, loading in {
                "before": {},
                "after": {"adapter": folder / "momo"},
                "after, torch": {"adapter": folder / "momo", "backend": "torch", "device": "cpu"},
            }.items()
        }
        unchanged = hashlib.sha256(base.read_bytes()).hexdigest() == before
    same = sum(a == b for a, b in zip(told["after"], told["after, torch"], strict=True))
    rows = {which: count(asked, said) for which, said in told.items()}
    print(f"\ntuned in {seconds:.0f} s, best validation loss {state.best:.3f}; base file unchanged: {unchanged}")
    for which, row in rows.items():
        print(f"{which:14} in her form {row['form']:4} of {len(asked)}   right {row['right']:4}")
    print(f"the same answers on both backends: {same} of {len(asked)}")
    print(json.dumps({"name": "tune", "seconds": round(seconds, 1), "asked": len(asked), "same": same, **rows}))


def alone(source: Any, n: int) -> list[Example]:
    """The first n examples without history."""
    return list(itertools.islice((example for example in source if not example.history), n))


def write(path: Path, chosen: list[Example]) -> Path:
    """Examples with answers in her form."""
    lines = ({"prompt": one.prompt, "response": f"{NAME}{one.response}{END}"} for one in chosen)
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


def answers(model: Model, asked: list[Example]) -> list[str]:
    return [model.chat(one.prompt, do_sample=False, max_new_tokens=100)[0] for one in asked]


def count(asked: list[Example], said: list[str]) -> dict[str, int]:
    """How many answers have her form, and how many are right whatever the form."""
    bare = [text.removeprefix(NAME.strip()).removesuffix(END).strip() for text in said]
    return {
        "form": sum(text.startswith(NAME.strip()) and text.endswith(END) for text in said),
        "right": sum(one.is_right(text) for one, text in zip(asked, bare, strict=True)),
    }


def show(report: Report) -> None:
    if report.validation is not None:
        print(f"step {report.step:5}   loss {report.loss:.3f}   validation {report.validation:.3f}", flush=True)


if __name__ == "__main__":
    main()
