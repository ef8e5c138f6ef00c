"""The child's side of a contest: a process that holds one contestant and does what it reads on its standard input.

    stdin  "prefill 512"      stdout  {"result": 5.93, "disk_reads": 0}            seconds
           "decode 512 2"             {"result": [0.083, 0.081], "disk_reads": 0}  seconds of each step
           "rss"                      {"result": 4012345678, "disk_reads": 0}      the most bytes it has held
           "about"                    {"result": "chatglm.cpp 0.4.2", "disk_reads": 0}

The first line it writes, {}, says that it can be asked. `disk_reads` are page faults that had to wait for the disk:
where there are any, a model did not fit into memory and its times say nothing. The standard library only, since the
contestants live in different environments.
"""

import json
import os
import random
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

GMASK, SOP = 130001, 130004  # what a prompt of ChatGLM-6B ends with


class LanguageModel(Protocol):
    """What a contestant can do, for as many sequences as it was opened for."""

    @property
    def about(self) -> str:
        """Its name and version."""

    def prefill(self, ids: list[int]) -> None:
        """Forgets everything, reads `ids` in every sequence and chooses the next token."""

    def rewind(self, n: int) -> None:
        """Goes back to where `prefill` of n ids ended."""

    def step(self) -> None:
        """Reads each sequence's chosen token, all in one pass, and chooses the next, the likeliest."""


def serve_model(open_model: Callable[[str, int, int, int], LanguageModel]) -> None:
    """The whole life of a contestant: open_model(file, threads, context, sequences) of the command line, then serve."""
    write = _own_stdout()
    file, *numbers = sys.argv[1:]
    threads, context, sequences = map(int, numbers)
    model, read = open_model(file, threads, context, sequences), 0

    def prefill(n: int) -> float:
        nonlocal read
        ids, begin = prompt(n), time.perf_counter()
        model.prefill(ids)
        read = n
        return time.perf_counter() - begin

    def decode(n: int, steps: int) -> list[float]:
        if read != n:
            prefill(n)
        model.rewind(n)
        return [_timed(model.step) for _ in range(steps)]

    _serve(write, {"prefill": prefill, "decode": decode, "rss": peak_rss_bytes, "about": lambda: model.about})


def serve_commands(open_commands: Callable[[], Mapping[str, Callable[..., Any]]]) -> None:
    """The same for other commands, which are given the words behind their name, numbers as int."""
    write = _own_stdout()
    _serve(write, open_commands())


def prompt(n: int) -> list[int]:
    """n random ids, the same in every process, that end with [gMASK] <sop>."""
    rng = random.Random(n)
    return [*(rng.randrange(100, 20000) for _ in range(n - 2)), GMASK, SOP]


def repeated(run: Callable[[], Any], budget_s: float, least: int = 3) -> list[float]:
    """Seconds of each of as many runs as fit into budget_s, after one that is not counted.

    `least` at least, unless they take ten times the budget.
    """
    run()
    seconds: list[float] = []
    while sum(seconds) < (10 * budget_s if len(seconds) < least else budget_s):
        seconds.append(_timed(run))
    return seconds


def peak_rss_bytes() -> int | None:
    """The most memory this process has held, mapped files included; None where the system does not say."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage begins with what the parent held
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None


def _serve(write: Callable[[Any], None], commands: Mapping[str, Callable[..., Any]]) -> None:
    write({})
    for line in sys.stdin:
        name, *words = line.split()
        before = _disk_reads()
        result = commands[name](*(int(word) if word.isdigit() else word for word in words))
        write({"result": result, "disk_reads": _disk_reads() - before})


def _own_stdout() -> Callable[[Any], None]:
    """What writes answers. Libraries print to stdout too: that goes to stderr from now on."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def write(answer: Any) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    return write


def _timed(run: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def _disk_reads() -> int:
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt
