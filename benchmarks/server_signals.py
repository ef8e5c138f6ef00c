"""SIGTERM at random moments: does the server always end with status 0, and in time?"""

import random
import signal
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from server_client import chat
from server_crowd import Visit, visit
from server_process import Server

GRACE_S, SLACK_S, AT_ONCE_S = 10.0, 1.0, 1.0
_LONG = "tell me about 北京 and the weather " * 26
_SERVERS, _EDGE_S = 2, 30.0


@dataclass
class Case:
    """What the server is doing: so many requests at once, and the signal up to `within_s` later."""

    until: str
    within_s: float
    clients: int = 0
    tokens: int = 1
    text: str = "hello"
    twice: bool = False


CASES = {
    "first line": Case("", 0.3),
    "loading": Case("listening", 2.5),
    "idle": Case("ready", 0.5),
    "prompts": Case("ready", 0.3, clients=8, text=_LONG),
    "streams": Case("ready", 1.0, clients=8, tokens=100),
    "queue full": Case("ready", 1.0, clients=80, tokens=40),
    "too long": Case("ready", 1.0, clients=72, tokens=480),
    "twice": Case("ready", 1.0, clients=72, tokens=480, twice=True),
}
_TURNS = [name for name in CASES if name != "too long"] * 4 + ["too long"]


@dataclass
class Ending:
    """How it went."""

    name: str
    status: int | None
    seconds: float
    allowed_s: float
    lines: list[str]
    whole: int = 0
    cut_off: int = 0


def end_one(model: str, eos: int, name: str, chance: random.Random) -> Ending:
    """Starts a server, makes it busy, and ends it."""
    case = CASES[name]
    with Server(model, until=case.until) as server:
        visits = [Visit(chat(case.text, case.tokens, seed=n, eos=eos)) for n in range(case.clients)]
        clients = threading.Thread(target=lambda: visit(server.port, visits, _EDGE_S))
        if visits:
            clients.start()
        time.sleep(chance.uniform(0, case.within_s))
        server.signal(signal.SIGTERM)
        allowed_s = GRACE_S + SLACK_S
        if case.twice:
            time.sleep(chance.uniform(0, 1))
            server.signal(signal.SIGTERM)
            allowed_s = AT_ONCE_S
        begin_s = time.monotonic()
        status = server.wait(_EDGE_S)
        ended_s = time.monotonic() - begin_s
        if visits:
            clients.join()
        whole = sum(b"data: [DONE]" in each.answer for each in visits)
        cut_off = sum(each.status == 200 for each in visits) - whole
        return Ending(name, status, ended_s, allowed_s, server.lines, whole, cut_off)


def run(model: str, eos: int, count: int) -> dict[str, Any]:
    """Measures and prints."""
    names = [_TURNS[n % len(_TURNS)] for n in range(count)]
    with ThreadPoolExecutor(_SERVERS) as pool:
        found = list(pool.map(lambda n: end_one(model, eos, names[n], random.Random(n)), range(count)))
    groups: dict[str, list[Ending]] = defaultdict(list)
    for ending in found:
        groups[ending.name].append(ending)
    for name, group in groups.items():
        seconds = sorted(ending.seconds for ending in group)
        whole, cut_off = sum(e.whole for e in group), sum(e.cut_off for e in group)
        print(
            f"{name:12} {len(group):4}: ended after {seconds[len(seconds) // 2]:5.2f} s, at most {seconds[-1]:5.2f} s; "
            f"{whole} answers whole, {cut_off} cut off"
        )
    bad = [ending for ending in found if ending.status != 0 or ending.seconds > ending.allowed_s]
    for ending in bad:
        print(f"  {ending.name}: status {ending.status} after {ending.seconds:.2f} s: {ending.lines[-4:]}")
    noisy = [ending for ending in found if any("Traceback" in line or "Error" in line for line in ending.lines)]
    print(f"{len(bad)} of {count} with another status or too late, {len(noisy)} with a traceback")
    for ending in noisy[:3]:
        print("\n".join(ending.lines[-12:]))
    return {"signals": count, "bad": len(bad), "tracebacks": len(noisy), "longest_s": max(e.seconds for e in found)}
