"""What does prompt lookup win where an answer repeats what was said, and what does it cost where nothing repeats?

    python benchmarks/lookup.py MODEL [--threads N] [--tokens N] [--runs N]

A model of random weights repeats nothing on purpose, and one that was trained not always what is asked. So the ids of
an answer are given: after each real pass and each real draw the given id is taken in place of the drawn one. What is
measured is therefore lookup with a model that says exactly this; the passes, the drafts and their prices are real. The
last row is the model's own greedy answer. Prompts are of --tokens ids, too.

    copy      the answer is the prompt's text               edit    the same with every sixteenth id another
    prose     this project's licence, each word an id       noise   fifty ids at random: matches that mislead
    greedy    what the model says to the noise

Plain and lookup run in turn; printed are medians of the decoding speed, the ratio of the medians, and whether the two
gave equal ids and equal log-probabilities, to the bit. The last line is the same as JSON.
"""

import argparse
import json
import random
import re
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import glmcpu
from glmcpu.generate import GREEDY, Token

LICENCE = Path(__file__).parents[1] / "LICENSE"
FIRST_ID = 1000


class Given:
    """A sampler that draws greedily and says the given ids all the same; without any, what it drew."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = ids

    def start(self) -> "Given":
        self.left, self.draw = iter(self.ids), GREEDY.start()
        return self

    def choose(self, logits: Any, ids: Sequence[int]) -> int:
        return next(self.left, self.draw.choose(logits, ids))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    model = glmcpu.Model.load(options.model, threads=options.threads)
    model.compile()
    print("task     plain tok/s   lookup tok/s   ratio   drafts held   equal")
    rows = []
    for name, (prompt, answer) in tasks(options.tokens).items():
        row = measure(model, [*prompt, model.config.gmask, model.config.bos], answer, options.tokens, options.runs)
        rows.append({"task": name, **row})
        print(
            f"{name:7}  {row['plain_tok_per_s']:11.2f}   {row['lookup_tok_per_s']:12.2f}   {row['ratio']:5.2f}   "
            f"{row['accepted']:5d} of {row['drafts']:<5d}   {'yes' if row['equal'] else 'NO'}"
        )
    print(json.dumps({"name": "lookup", "model": Path(options.model).name, "tokens": options.tokens, "rows": rows}))


def tasks(n: int) -> dict[str, tuple[list[int], list[int]]]:
    """Name -> (text of the prompt, the answer's ids; none: the model's own)."""
    rng = random.Random(0)
    numbers: dict[str, int] = {}
    words = re.findall(r"\w+|[^\w\s]", LICENCE.read_text(encoding="utf-8"))
    prose = [numbers.setdefault(word, FIRST_ID + len(numbers)) for word in words]
    copied = [rng.randrange(FIRST_ID, 50_000) for _ in range(n)]
    edited = [i + 50_000 if place % 16 == 9 else i for place, i in enumerate(copied)]
    noise = [FIRST_ID + rng.randrange(50) for _ in range(2 * n)]
    return {
        "copy": (copied, copied),
        "edit": (copied, edited),
        "prose": (prose[:n], prose[n : 2 * n]),
        "noise": (noise[:n], noise[n:]),
        "greedy": (noise[:n], []),
    }


def measure(model: glmcpu.Model, ids: list[int], answer: list[int], n: int, runs: int) -> dict[str, Any]:
    speeds: dict[bool, list[float]] = {False: [], True: []}
    said: dict[bool, list[Token]] = {}
    for _ in range(runs):
        for lookup in speeds:
            speed, said[lookup] = answer_once(model, ids, answer, n, lookup)
            speeds[lookup].append(speed)
    plain, with_lookup = statistics.median(speeds[False]), statistics.median(speeds[True])
    return {
        "plain_tok_per_s": round(plain, 2),
        "lookup_tok_per_s": round(with_lookup, 2),
        "ratio": round(with_lookup / plain, 3),
        "drafts": sum(token.draft is not None for token in said[True]),
        "accepted": sum(token.draft == token.id for token in said[True]),
        "equal": said[False] == said[True],
    }


def answer_once(
    model: glmcpu.Model, ids: list[int], answer: list[int], n: int, lookup: bool
) -> tuple[float, list[Token]]:
    """Tokens a second after the first one, and the tokens."""
    sampler: Any = Given(answer)
    tokens = model.generate(ids, sampler=sampler, max_new_tokens=n, lookup=lookup)
    said = [next(iter(tokens))]
    begin = time.perf_counter()
    said += tokens
    return (len(said) - 1) / (time.perf_counter() - begin), said


if __name__ == "__main__":
    main()
