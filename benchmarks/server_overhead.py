"""One stream over HTTP against Model.generate in a process of its own: what does all that is between them cost?

The two take turns with the same questions and seeds, so they must also say the same. Other programs on the machine slow
some answers of either; the first quartile, of the fastest quarter, has the least of them.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from server_client import ask, chat
from server_process import Server
from server_worker import load

from glmcpu import Model, Sampler, files, random_weights, store
from glmcpu.tokenizers.prompt import process_response

_QUESTION = "what is a token?"


@contextlib.contextmanager
def larger(channels: int, layers: int) -> Iterator[Path]:
    """Random weights in the demo's shape, of that many channels and layers, until the block ends."""
    config = dataclasses.replace(
        Model.load("demo").language_model.config, channels=channels, layers=layers, feed_forward=4 * channels
    )
    target = store.home() / f".server-{channels}-{os.getpid()}{store.SUFFIX}"
    random_weights.write(target, "chatglm", config, "int4_g32", lambda *_: None)
    try:
        yield target
    finally:
        files.remove(target)


def run(model: str, eos: int, tokens: int, pairs: int) -> dict[str, Any]:
    """Measures and prints."""
    found: list[tuple[float, float]] = []
    totals: list[float] = []
    differ = 0
    with Server(model, script="server_worker.py") as server, Alone(model) as alone:
        for n in range(pairs + 2):
            question = {"text": _QUESTION, "tokens": tokens, "seed": n, "eos": eos}
            turns = [lambda: served(server.port, question), lambda: alone.ask(question)]  # noqa: B023  used at once
            (over, alone_s) = [turn() for turn in turns] if n % 2 else [turn() for turn in turns[::-1]][::-1]
            differ += over["text"] != alone_s["text"]
            if n >= 2:
                found.append((over["decode_s"], alone_s["decode_s"]))
                totals.append(over["total_s"] / alone_s["total_s"])
    of_pairs = statistics.median(over_s / alone_s for over_s, alone_s in found)
    stream_ms, alone_ms = (
        [1000 * second / (tokens - 1) for second in statistics.quantiles(seconds)]
        for seconds in zip(*found, strict=True)
    )
    for name, alone_1, stream_1 in zip(("first", "second", "third"), alone_ms, stream_ms, strict=True):
        cost = 100 * (stream_1 / alone_1 - 1)
        print(f"{name} quartile: {alone_1:.2f} ms a token alone, {stream_1:.2f} ms as a stream: {cost:+.1f} %")
    print(
        f"median of {pairs} pairs {100 * (of_pairs - 1):+.1f} %, with the prompt "
        f"{100 * (statistics.median(totals) - 1):+.1f} %; {differ} answers differ"
    )
    return {"alone_ms": alone_ms, "stream_ms": stream_ms, "of_pairs": of_pairs, "differ": differ}


def served(port: int, question: dict[str, Any]) -> dict[str, Any]:
    """An answer of the server, and how long it took from the first text to the end, and in all."""
    data = chat(question["text"], question["tokens"], seed=question["seed"], eos=question["eos"], temperature=1.0)
    outcome = asyncio.run(ask(port, data))
    decode_s = outcome.end_s - outcome.token_s[0]
    return {"text": outcome.text(), "decode_s": decode_s, "total_s": outcome.seconds}


class Alone:
    """A process that has the model and nothing else; a context manager."""

    def __init__(self, model: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, model], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> "Alone":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """As `served`."""
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps(question), file=self._process.stdin, flush=True)
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        return found


def answer(model: Model, question: dict[str, Any]) -> dict[str, Any]:
    """An answer of this process."""
    assert model.tokenizer
    begin_s, first_s, text = time.monotonic(), 0.0, ""
    ids = model.tokenizer.encode(model.tokenizer.chat_prompt(question["text"], []))
    sampler = Sampler(temperature=1.0, seed=question["seed"], logit_bias={question["eos"]: -100.0})
    for token in model.generate(ids, sampler=sampler, max_new_tokens=question["tokens"], post=process_response):
        text += token.text
        if text and not first_s:
            first_s = time.monotonic()
    end_s = time.monotonic()
    return {"text": text, "decode_s": end_s - first_s, "total_s": end_s - begin_s}


if __name__ == "__main__":
    own = load(sys.argv[1])
    own.compile()
    for line in sys.stdin:
        print(json.dumps(answer(own, json.loads(line))), flush=True)
