"""This project, chatglm.cpp and llama.cpp on the same work, in turn: how many times as fast, and with what memory?

    python benchmarks/peers.py --glmcpu OURS --chatglm-cpp Q4.GGML --llama-cpp Q4.GGUF --peers-python PEERS/bin/python

The peers live in an environment of their own (both compile for some minutes), and their files are random weights:

    python -m venv PEERS
    export CMAKE_POLICY_VERSION_MINIMUM=3.5
    CMAKE_ARGS=-DCMAKE_POLICY_VERSION_MINIMUM=3.5 PEERS/bin/pip install chatglm-cpp==0.4.2
    CMAKE_ARGS=-DGGML_NATIVE=ON PEERS/bin/pip install llama-cpp-python==0.3.36 gguf
    PEERS/bin/python benchmarks/peer_files.py chatglm.cpp Q4.GGML ice_text.model
    PEERS/bin/python benchmarks/peer_files.py llama.cpp Q4.GGUF

OURS is a packed ChatGLM-6B in int4_g32, true or random weights: speed does not depend on them. Each is a child process
that keeps its model; one works at a time, A B C A B C .., and the others are stopped. Why it is fair: the same machine
in the same minutes, the same number of threads, the same random ids, and on all sides 4.5 bits a weight with a scale
for every 32 and a half-precision cache. llama.cpp cannot run generation 1, so it gets a Llama with as many weights in
each layer and the same vocabulary (peer_files.py); it reads a prompt causally, which is less work in attention, not
more. Tokens are timed at each library's own interface, up to the choice of the likeliest next id, without text.

    decode N     one more token behind N, each round from N on again; all tokens of all rounds
    prefill N    a prompt of N ids, up to the first token
    batch N      eight sequences of N ids, one token more for each in one pass (chatglm.cpp has no such thing)
    rss          the most memory a fresh process held, mapped file included, in a chat of 2048: 1900 read, 147 written
    start        a fresh process until it could take a prompt, its file in the page cache, our kernels compiled before
    first        the same until the first token of an answer to 16 ids: what is put off at the start is paid here

A ratio is the quotient of medians, ours / theirs. GLMCPU_ISA=avx2 holds for our side alone. 20 GB of free memory are
needed for all three, and most of an hour on two cores, for chatglm.cpp's prompts of 1900 above all; see --rows and
--quick. The last line is JSON.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from peer_process import Contestant, in_turn, ratios, shown_ratio, summary, warn, warn_if_busy

from glmcpu.kernels.threads import physical_cores

OURS, CHATGLM_CPP, LLAMA_CPP = "glmcpu", "chatglm.cpp", "llama.cpp"
SCRIPTS = {OURS: "peer_glmcpu.py", CHATGLM_CPP: "peer_chatglm_cpp.py", LLAMA_CPP: "peer_llama_cpp.py"}
CONTEXT = 2048
SHORT_PROMPT = 16
SEQUENCES = 8
VALUE, RATIO = 22, 18  # widths of columns


class Kind(NamedTuple):
    """A kind of row: its unit, and whether our ratio shall be at most the goal."""

    unit: str
    at_most: bool = False


KINDS = {
    "decode": Kind("tok/s"),
    "prefill": Kind("tok/s"),
    "batch": Kind("tok/s"),
    "rss": Kind("GB", at_most=True),
    "start": Kind("s", at_most=True),
    "first": Kind("s", at_most=True),
}
GOALS: dict[str, dict[str, float]] = {
    "decode 128": {CHATGLM_CPP: 1.5, LLAMA_CPP: 1.0},
    "decode 512": {CHATGLM_CPP: 1.6, LLAMA_CPP: 1.2},
    "decode 1900": {CHATGLM_CPP: 1.6, LLAMA_CPP: 1.7},
    "prefill 128": {CHATGLM_CPP: 8, LLAMA_CPP: 1.8},
    "prefill 512": {CHATGLM_CPP: 8, LLAMA_CPP: 1.8},
    "prefill 1900": {CHATGLM_CPP: 8, LLAMA_CPP: 1.8},
    "batch 128": {LLAMA_CPP: 2},
    "batch 512": {LLAMA_CPP: 2},
    "rss": {CHATGLM_CPP: 1, LLAMA_CPP: 0.6},
    "start": {LLAMA_CPP: 1},
    "first": {},
}
BATCH_GOAL = 5  # times one sequence
QUICK = "start,prefill 128,decode 128,batch 128"

Row = tuple[str, dict[str, list[float]]]
"""Name, and what each contestant measured, in the unit of its kind."""


def main() -> None:
    options = arguments()
    models = {name: path for name, path in zip(SCRIPTS, options.models, strict=True) if path}
    arena = Arena(models, options.peers_python or sys.executable, options.threads)
    warn_if_busy()
    print(f"peers     {', '.join(models)}   {options.threads} threads   {options.rounds} rounds", flush=True)
    print("          " + "\n          ".join(f"{name:13}{path.name}" for name, path in models.items()))
    print(f"\n{'median (p10..p90)':18}" + headings(list(models)))
    rows = []
    for name, values in measured(arena, options.rows, options.rounds, options.tokens):
        row = judged(name, values)
        rows.append(row)
        print(line(row, list(models)), flush=True)
    for n in (128, 512):
        compare_batch(rows, n)
    print("\n          " + "\n          ".join(arena.about.values()))
    print(json.dumps({"name": "peers", "threads": options.threads, "contestants": arena.about, "rows": rows}))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for option in ("--glmcpu", "--chatglm-cpp", "--llama-cpp"):
        parser.add_argument(option, type=Path, metavar="FILE", help="left out: does not take part")
    parser.add_argument("--peers-python", metavar="PYTHON", help="the Python of the peers' environment")
    parser.add_argument("--threads", type=int, default=physical_cores(), help="chatglm.cpp always takes its own number")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=16, help="decoded in a round, 100 at most")
    parser.add_argument("--rows", default=",".join(GOALS), help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help=f"one round of 4 tokens: {QUICK}")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.tokens, options.rows = 1, 4, QUICK
    options.rows = [" ".join(row.split()) for row in options.rows.split(",")]
    options.models = [options.glmcpu, options.chatglm_cpp, options.llama_cpp]
    if unknown := [row for row in options.rows if row not in GOALS]:
        parser.error(f"--rows {unknown[0]}: known are {', '.join(GOALS)}")
    if not any(options.models):
        parser.error("give the model files of one contestant at least")
    if not 1 <= options.tokens <= 100 or options.rounds < 1:
        parser.error("1 to 100 tokens and at least one round are needed")
    return options


class Arena:
    """Makes contestants, and remembers what they say about themselves."""

    def __init__(self, models: dict[str, Path], peers_python: str, threads: int) -> None:
        self.models, self.threads, self.about = models, threads, dict.fromkeys(models, "")
        self._pythons = dict.fromkeys(models, peers_python) | {OURS: sys.executable}

    def enter(self, name: str, context: int, sequences: int) -> Contestant:
        """A fresh process; a context manager."""
        file = self.models[name]
        contestant = Contestant(
            name, self._pythons[name], SCRIPTS[name], file.resolve(), self.threads, context, sequences
        )
        self.about[name] = self.about[name] or contestant.ask("about")
        return contestant

    @contextlib.contextmanager
    def all(self, context: int = CONTEXT, sequences: int = 1) -> Iterator[list[Contestant]]:
        """All that can decode so many sequences, at once."""
        names = [name for name in self.models if sequences == 1 or name != CHATGLM_CPP]
        with contextlib.ExitStack() as stack:
            yield [stack.enter_context(self.enter(name, context, sequences)) for name in names]


def measured(arena: Arena, wanted: Sequence[str], rounds: int, tokens: int) -> Iterator[Row]:
    """All rows, as they are known. What needs fresh processes comes first, while memory is empty."""
    if {"start", "first"} & set(wanted):
        yield from ((name, values) for name, values in starts(arena, rounds).items() if name in wanted)
    lengths = {name: [int(row.split()[1]) for row in wanted if row.startswith(name + " ")] for name in KINDS}
    alone = sorted({*lengths["decode"], *lengths["prefill"]})
    if alone or "rss" in wanted:
        with arena.all() as contestants:
            if "rss" in wanted:
                yield "rss", rss(contestants)
            else:
                warm_up(contestants)
            for n in alone:
                yield from single(contestants, n, n in lengths["prefill"], n in lengths["decode"], rounds, tokens)
    if batches := sorted(lengths["batch"]):
        with arena.all(max(batches) + tokens + 1, SEQUENCES) as contestants:
            warm_up(contestants)
            for n in batches:
                seconds = in_turn(contestants, rounds, decoding(n, tokens))
                yield f"batch {n}", speeds(SEQUENCES, seconds)


def warm_up(contestants: Sequence[Contestant]) -> None:
    """Reads all weights once."""
    in_turn(contestants, 1, lambda c: c.ask(f"decode {SHORT_PROMPT} 2", counted=False))


def starts(arena: Arena, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Fresh processes one after another, in turn; a first round fills the page cache and is not counted."""
    found: dict[str, dict[str, list[float]]] = {row: {name: [] for name in arena.models} for row in ("start", "first")}
    for turn in range(rounds + 1):
        for name in arena.models:
            with arena.enter(name, CONTEXT, 1) as contestant:
                first_s = contestant.start_s + contestant.ask(f"prefill {SHORT_PROMPT}", counted=turn > 0)
            if turn:
                found["start"][name].append(contestant.start_s)
                found["first"][name].append(first_s)
    return found


def rss(contestants: Sequence[Contestant]) -> dict[str, list[float]]:
    """GB each fresh contestant held at most in a chat of CONTEXT tokens."""
    found = {}
    for contestant in contestants:
        contestant.ask(f"decode 1900 {CONTEXT - 1900 - 1}", counted=False)
        held = contestant.ask("rss")
        if held is None:
            warn("rss: this system does not say how much memory a process held")
        else:
            found[contestant.name] = [held / 1e9]
    return found


def single(
    contestants: Sequence[Contestant], n: int, prefill: bool, decode: bool, rounds: int, tokens: int
) -> Iterator[Row]:
    """The rows of one length: what the last round of prefill has read, decode goes on from."""
    if prefill:
        yield f"prefill {n}", speeds(n, in_turn(contestants, rounds, lambda c: c.ask(f"prefill {n}")))
    if decode:
        yield f"decode {n}", speeds(1, in_turn(contestants, rounds, decoding(n, tokens)))


def decoding(n: int, tokens: int) -> Callable[[Contestant], list[float]]:
    return lambda contestant: contestant.ask(f"decode {n} {tokens}")


def speeds(tokens: int, seconds: dict[str, list[float]]) -> dict[str, list[float]]:
    return {name: [tokens / s for s in all_s] for name, all_s in seconds.items()}


def judged(name: str, values: dict[str, list[float]]) -> dict[str, Any]:
    """A row as it stands in the JSON."""
    unit, at_most = KINDS[name.split()[0]]
    found = {contestant: summary(numbers) for contestant, numbers in values.items()}
    medians = {contestant: numbers["median"] for contestant, numbers in found.items()}
    return {"row": name, "unit": unit, "values": found, "ratios": ratios(medians, OURS, GOALS[name], at_most)}


def headings(names: Sequence[str]) -> str:
    return "".join(f"{name:>{VALUE}}" for name in names) + "".join(f"{'x ' + name:>{RATIO}}" for name in peers(names))


def line(row: dict[str, Any], names: Sequence[str]) -> str:
    """A row for a person."""
    at_most = KINDS[row["row"].split()[0]].at_most
    cells = [f"{shown(row['values'].get(name)):>{VALUE}}" for name in names]
    cells += [f"{shown_ratio(row['ratios'].get(name), at_most):>{RATIO}}" for name in peers(names)]
    return f"{row['row']:12}{row['unit']:6}" + "".join(cells)


def shown(numbers: dict[str, float] | None) -> str:
    if numbers is None:
        return "-"
    spread = "" if numbers["p10"] == numbers["p90"] else " ({p10:.3g}..{p90:.3g})".format(**numbers)
    return f"{numbers['median']:.3g}{spread}"


def peers(names: Sequence[str]) -> list[str]:
    """Those we are compared with."""
    return [name for name in names if name != OURS] if OURS in names else []


def compare_batch(rows: Sequence[dict[str, Any]], n: int) -> None:
    """How much eight sequences are worth against one, where both were measured."""
    found = {row["row"]: row["values"].get(OURS) for row in rows}
    one, eight = found.get(f"decode {n}"), found.get(f"batch {n}")
    if one and eight:
        ratio = eight["median"] / one["median"]
        verdict = "yes" if ratio >= BATCH_GOAL else "NO"
        print(f"\n          eight sequences of {n} against one: {ratio:.2f} >= {BATCH_GOAL} {verdict}")


if __name__ == "__main__":
    main()
