"""Clients that leave at random moments: how much does the engine still do for them, and is every place free again?

A pass over the weights that has begun when a client leaves is not counted: nothing can call it back.
"""

import asyncio
import contextlib
import random
import time
from collections import defaultdict
from typing import Any

from server_client import Connection, Outcome, ask, chat, percentile, request
from server_process import Server

_WORKERS, _OTHERS, _STAY = 4, 8, 10**9
_LONG = "tell me about 北京 and the weather " * 26
MOMENTS = ("in the queue", "in the prompt", "in the answer")


class Leavers:
    """The clients that leave; `left_s` is when each did, by its seed."""

    def __init__(self, port: int, eos: int, count: int) -> None:
        self.port, self.eos, self.count, self.next = port, eos, count, 0
        self.random = random.Random(11)
        self.left_s: dict[int, float] = {}
        self.kinds: dict[int, tuple[str, str, str]] = {}

    async def run(self, moment: str) -> None:
        """All of one moment, beside other clients, which take all places where a queue is wanted."""
        end = self.next + self.count
        others = [asyncio.create_task(self._stay(n)) for n in range(_OTHERS if moment == "in the queue" else 1)]
        await asyncio.sleep(0.5)
        await asyncio.gather(*(self._worker(moment, end) for _ in range(_WORKERS)))
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _stay(self, n: int) -> None:
        while True:
            await ask(self.port, chat("hello", 400, seed=_STAY + n, eos=self.eos))

    async def _worker(self, moment: str, end: int) -> None:
        while self.next < end:
            seed, self.next = self.next, self.next + 1
            stream, reset = self.random.random() < 0.5, self.random.random() < 0.5
            text = _LONG if moment == "in the prompt" else "hello"
            connection = await Connection.open(self.port)
            await connection.send(chat(text, 140, seed=seed, stream=stream, eos=self.eos, temperature=1.0))
            outcome = Outcome()
            wait_s = self.random.uniform(0, 0.06 if moment == "in the prompt" else 0.4)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(_read(connection, outcome), wait_s)
            self.left_s[seed] = time.monotonic()
            connection.leave(reset=reset)
            self.kinds[seed] = moment, "stream" if stream else "whole", "RST" if reset else "FIN"


async def _read(connection: Connection, outcome: Outcome) -> None:
    async for _ in connection.read(outcome):
        pass


def run(model: str, eos: int, count: int) -> dict[str, Any]:
    """Measures and prints."""
    with Server(model, "--watch", script="server_worker.py") as server:
        leavers = Leavers(server.port, eos, -(-count // len(MOMENTS)))
        for moment in MOMENTS:
            asyncio.run(leavers.run(moment))
        time.sleep(2)
        health = asyncio.run(ask(server.port, request("GET", "/health"))).body.decode()
        again = asyncio.run(_again(server.port, eos))
        time.sleep(1)
        used = server.used()
        watched = {line["seed"]: line for line in server.log if "seed" in line}
        logged = [line for line in server.log if "path" in line]
    groups: dict[tuple[str, ...], list[tuple[int, int, float]]] = defaultdict(list)
    for seed, left_s in leavers.left_s.items():
        if (line := watched.get(seed)) is None:
            groups[("left before it was asked",)].append((0, 0, 0.0))
        elif line["ended_s"] > left_s:
            passes, tokens = (sum(moment_s > left_s for moment_s in line[key]) for key in ("passes_s", "tokens_s"))
            groups[leavers.kinds[seed]].append((passes, tokens, line["ended_s"] - left_s))
        else:
            groups[("left after the end",)].append((0, 0, 0.0))
    found = [each for group in groups.values() for each in group]
    for kind, group in sorted(groups.items()):
        passes, tokens, late_s = (sorted(values) for values in zip(*group, strict=True))
        print(
            f"{' '.join(kind):30} {len(group):4}: passes begun afterwards at most {passes[-1]}, tokens {tokens[-1]}, "
            f"free after {1000 * percentile(late_s, 0.5):.1f} ms, at most {1000 * late_s[-1]:.0f} ms"
        )
    spread = {n: sum(tokens == n for _, tokens, _ in found) for n in sorted({tokens for _, tokens, _ in found})}
    print(f"tokens after leaving: {spread}; afterwards {health}, {again} of {_OTHERS} more answered at once, {used}")
    return {
        "disconnects": len(found),
        "passes": max(passes for passes, _, _ in found),
        "tokens": spread,
        "free_s": max(late_s for _, _, late_s in found),
        "health": health,
        "answered_afterwards": again,
        "logged_as_left": sum(bool(line.get("left")) for line in logged),
    }


async def _again(port: int, eos: int) -> int:
    found = await asyncio.gather(*(ask(port, chat("hello", 20, seed=_STAY, eos=eos)) for _ in range(_OTHERS)))
    return sum(outcome.finished() for outcome in found)
