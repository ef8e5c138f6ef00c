"""Thousands of requests, one in five broken off and one in ten malformed: does anything grow, is any answer wrong?"""

import asyncio
import random
import time
from dataclasses import dataclass
from typing import Any

from server_client import Connection, Outcome, ask, chat, request
from server_process import Server

from glmcpu import Model, Sampler
from glmcpu.tokenizers.prompt import process_response

_PHASES, _WORKERS, _CHECK_EVERY, _LONGEST_S = 20, 12, 100, 60.0
_WORDS = ["你好", "what", "is", "晚上", "glmcpu", "fast", "CPU", "睡不着", "tokens", "write", "a", "poem", "北京"]
_CHAT = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
MALFORMED: list[tuple[bytes, set[int]]] = [
    (request("POST", "/v1/chat/completions", b'{"messages": ['), {400}),
    (request("POST", "/v1/chat/completions", b'{"messages": []}'), {400}),
    (request("POST", "/v1/chat/completions", b'{"messages": [{"role": "user", "content": 7}]}'), {400}),
    (request("POST", "/v1/chat/completions", b"{}", kind="text/plain"), {415}),
    (request("POST", "/", b'{"prompt": "x", "history": [["a"]]}'), {400}),
    (request("POST", "/nowhere", b"{}"), {404}),
    (request("DELETE", "/health"), {405}),
    (b"\x16\x03\x01\x02\x00\x01\x00", {400}),
    (b"GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n", {403}),
    (b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"X: y\r\n" * 200 + b"\r\n", {431}),
    (f"{_CHAT}Content-Type: application/json\r\nContent-Length: 2000000\r\n\r\n".encode(), {413}),
    (f"{_CHAT}Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".encode(), {400}),
]


@dataclass
class Question:
    """A chat request of the soak."""

    text: str
    tokens: int
    seed: int
    stream: bool

    def data(self) -> bytes:
        """As it is sent."""
        return chat(self.text, self.tokens, seed=self.seed, stream=self.stream, temperature=1.0)

    def alone(self, model: Model) -> str:
        """What this process's own model answers."""
        assert model.tokenizer
        ids = model.tokenizer.encode(model.tokenizer.chat_prompt(self.text, []))
        sampler = Sampler(temperature=1.0, seed=self.seed)
        found = model.generate(ids, sampler=sampler, max_new_tokens=self.tokens, post=process_response)
        return "".join(token.text for token in found)


class Soak:
    """The requests, dealt out to workers, and what became of them."""

    def __init__(self, port: int, count: int) -> None:
        self.port, self.count, self.next = port, count, 0
        self.random = random.Random(7)
        self.counts: dict[str, int] = {}
        self.checked: list[tuple[Question, str]] = []

    async def until(self, end: int) -> None:
        """Makes requests up to this number, and closes all connections."""
        await asyncio.gather(*(self._worker(end) for _ in range(_WORKERS)))

    async def _worker(self, end: int) -> None:
        kept: Connection | None = None
        while self.next < end:
            n, draw = self.next, self.random.random()
            self.next += 1
            question = self._question(n)
            if n % _CHECK_EVERY == 0 or draw >= 0.3:
                kept = kept or await Connection.open(self.port)
                outcome = await ask(self.port, question.data(), limit_s=_LONGEST_S, connection=kept)
                self._note(n, question, outcome)
                if outcome.failure or self.random.random() < 0.1:
                    kept.leave()
                    kept = None
            elif draw >= 0.2:
                await self._malformed()
            else:
                await self._broken_off(question)
        if kept:
            kept.leave()

    def _question(self, n: int) -> Question:
        words = " ".join(self.random.choices(_WORDS, k=self.random.randint(1, 30)))
        return Question(words, self.random.randint(1, 24), n, self.random.random() < 0.6)

    def _note(self, n: int, question: Question, outcome: Outcome) -> None:
        good = outcome.status == 200 and outcome.finished() and not outcome.failure
        self._count("answered" if good else f"{outcome.status} {outcome.failure}".strip())
        if good and n % _CHECK_EVERY == 0:
            self.checked.append((question, outcome.text()))

    async def _malformed(self) -> None:
        data, expected = self.random.choice(MALFORMED)
        outcome = await ask(self.port, data, limit_s=_LONGEST_S)
        good = outcome.status in expected
        self._count("malformed, refused" if good else f"malformed {data[:40]!r}: {outcome.status} {outcome.failure}")

    async def _broken_off(self, question: Question) -> None:
        connection, data = await Connection.open(self.port), question.data()
        whole = self.random.random() < 0.8
        await connection.send(data if whole else data[: self.random.randrange(len(data))])
        await asyncio.sleep(self.random.uniform(0, 0.1))
        connection.leave(reset=self.random.random() < 0.5)
        self._count("broken off")

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1


def run(model: str, requests: int) -> dict[str, Any]:
    """Measures and prints."""
    samples: list[tuple[int, float, int, int]] = []
    begin_s = time.monotonic()
    with Server(model) as server:
        soak = Soak(server.port, requests)
        for phase in range(1, _PHASES + 1):
            asyncio.run(soak.until(requests * phase // _PHASES))
            time.sleep(1)
            samples.append((soak.next, *server.used()))
    took_s, own = time.monotonic() - begin_s, Model.load(model)
    wrong = sum(question.alone(own) != text for question, text in soak.checked)
    warm = samples[0]
    slope = _slope([(n / 10_000, megabytes) for n, megabytes, _, _ in samples])
    for n, megabytes, descriptors, threads in samples:
        print(f"{n:8,} requests: {megabytes:7.1f} MB of its own, {descriptors} descriptors, {threads} threads")
    print(", ".join(f"{count:,} {what}" for what, count in sorted(soak.counts.items())), f"in {took_s:.0f} s")
    print(f"{len(soak.checked)} answers compared with the model's own, {wrong} differ")
    print(f"growth since the first twentieth: {samples[-1][1] - warm[1]:.1f} MB; {slope:.2f} MB in 10,000 requests")
    return {
        "requests": soak.counts,
        "compared": len(soak.checked),
        "wrong": wrong,
        "grown_mb": samples[-1][1] - warm[1],
        "mb_per_10000": slope,
        "descriptors": [min(s[2] for s in samples), max(s[2] for s in samples)],
        "threads": [min(s[3] for s in samples), max(s[3] for s in samples)],
        "requests_per_s": requests / took_s,
    }


def _slope(points: list[tuple[float, float]]) -> float:
    """Of the line that fits best behind the first point."""
    points = points[1:]
    mean_x, mean_y = (sum(values) / len(points) for values in zip(*points, strict=True))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
