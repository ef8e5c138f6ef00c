"""The parent's side of a contest: contestants as child processes, of which one at a time does something.

A child that is not asked anything is stopped (SIGSTOP, where there is one): threads of OpenMP and of thread pools go on
turning for a while after their work, on the cores that the next contestant needs.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

_PAUSE_S = 0.2  # without signals: for threads that turn to fall asleep
_BUSY = 0.5  # the load average of the last minute
_FEW_READS = 100  # page faults that libraries and kernels cost when they are first used


class Contestant:
    """A child that runs a script of this folder; a context manager, at whose end the child is gone.

    start_s: seconds from the start of the process until it could be asked
    """

    def __init__(self, name: str, python: str, script: str, *arguments: object, isa: str = "") -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as the child
        command = [python, str(Path(__file__).with_name(script)), *map(str, arguments)]
        settings = {**os.environ, "GLMCPU_ISA": isa} if isa else None
        begin = time.perf_counter()
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=settings, text=True
        )
        try:
            self._answer("its start")
        except BaseException:
            self.__exit__()
            raise
        self.start_s = time.perf_counter() - begin

    def __enter__(self) -> "Contestant":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # reaches stopped processes too
        self._process.communicate()
        self._errors.close()

    def ask(self, command: str, counted: bool = True) -> Any:
        """The result of a command of peer_worker.py; counted: its time matters."""
        self._signal("SIGCONT")
        print(command, file=self._process.stdin, flush=True)
        answer = self._answer(command)
        if counted and answer["disk_reads"] > _FEW_READS:
            warn(
                f"{self.name}: {command} read from disk {answer['disk_reads']} times; memory is short, discard the row"
            )
        return answer["result"]

    def _answer(self, command: str) -> Any:
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace").strip()[-2000:]
            raise SystemExit(f"{self.name} ended with code {code} at {command}; its last words:\n{said}")
        self._signal("SIGSTOP")
        return json.loads(line)

    def _signal(self, name: str) -> None:
        if os.name == "posix":
            self._process.send_signal(getattr(signal, name))
        elif name == "SIGSTOP":
            time.sleep(_PAUSE_S)


def in_turn(
    contestants: Sequence[Contestant], rounds: int, measure: Callable[[Contestant], float | list[float]]
) -> dict[str, list[float]]:
    """Name -> all that `measure` gave, asked A B C A B C ..: what slows the machine down for a while meets all."""
    found: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    for _ in range(rounds):
        for contestant in contestants:
            result = measure(contestant)
            found[contestant.name].extend(result if isinstance(result, list) else [result])
    return found


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median and the spread from the 10th to the 90th percentile, to four digits."""
    ordered = sorted(values)
    last = len(ordered) - 1
    found = {
        "median": statistics.median(ordered),
        "p10": ordered[round(0.1 * last)],
        "p90": ordered[round(0.9 * last)],
    }
    return {key: float(f"{value:.4g}") for key, value in found.items()}


def ratios(
    medians: Mapping[str, float], ours: str, goals: Mapping[str, float], at_most: bool = False
) -> dict[str, dict[str, Any]]:
    """Peer -> ratio of our median to its own, and the goal where there is one, a least or a most ratio."""
    found: dict[str, dict[str, Any]] = {}
    for peer, median in medians.items():
        if peer == ours or ours not in medians:
            continue
        ratio, goal = medians[ours] / median, goals.get(peer)
        found[peer] = {"ratio": round(ratio, 3), "goal": goal}
        if goal is not None:
            found[peer]["met"] = ratio <= goal if at_most else ratio >= goal
    return found


def shown_ratio(against: Mapping[str, Any] | None, at_most: bool = False) -> str:
    """`1.73 >= 1.5 yes`, or `1.73` without a goal."""
    if against is None:
        return "-"
    if against["goal"] is None:
        return f"{against['ratio']:.2f}"
    sign, verdict = "<=" if at_most else ">=", "yes" if against["met"] else "NO"
    return f"{against['ratio']:.2f} {sign} {against['goal']} {verdict}"


def warn_if_busy() -> None:
    """Threads that wait by turning, as the peers' do, lose far more than others when somebody else takes a core."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0
    if load > _BUSY:
        warn(
            f"the load of this machine is {load:.1f} before anything is measured: ratios will not hold when it is idle"
        )


def warn(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
