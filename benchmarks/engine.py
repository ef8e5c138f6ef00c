"""Several answers at once: how much more than one stream do eight give, and how long does one that runs ever wait?

    python benchmarks/engine.py [MODEL] [--streams 8] [--prompt 128] [--tokens 24] [--joins 500] [--cache int8]

MODEL is a packed model, by default random weights of the 6B shape in int4_g32 (3.5 GB of disk while it runs). Every
answer is sampled as chat() does, so that nothing repeats itself and is guessed ahead. Measured are tokens per second of
one stream, before and after, and of all together once every prompt has been read, both from the median time between
tokens; the first token of the last of the streams that were asked for at once; and the longest gap between two tokens
of a running stream while one more prompt, of --joins tokens, is read. The last line is the same as JSON.
"""

import argparse
import itertools
import json
import os
import statistics
import threading
import time
from contextlib import nullcontext
from pathlib import Path

from glmcpu import Engine, Model, Sampler, Stream, bench
from glmcpu.engine import PAUSE_S
from glmcpu.random_weights import temporary_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--joins", type=int, default=500)
    parser.add_argument("--pause", type=float, default=PAUSE_S)
    parser.add_argument("--cache", choices=["f16", "int8", "f32"])
    options = parser.parse_args()
    with (
        temporary_model("chatglm-6b", "int4_g32", lambda *_: None)
        if options.model is None
        else nullcontext((options.model, lambda: None))
    ) as (path, opened):
        model = Model.load(path, cache=options.cache)
        opened()
        model.compile()
        if hasattr(os, "sync"):
            os.sync()  # a new file's way to the disk would take memory's time
        with Engine(model, parallel=options.streams + 1, pause_s=options.pause) as engine:
            run(engine, options)


def run(engine: Engine, options: argparse.Namespace) -> None:
    """Measures and prints."""
    one = alone(engine, options)
    begin_s = time.perf_counter()
    running = ask(engine, options.prompt, options.streams)
    together = options.streams / statistics.median(steps(running, options.tokens))
    last_s = max(client.times[0] for client in running) - begin_s
    leave(running[:1])
    begin_s = time.perf_counter()
    (joined,) = ask(engine, options.joins, 1)
    wait(joined, 1)
    end_s = joined.times[0]
    gap_s = max(longest_gap(client.times, begin_s, end_s) for client in running[1:])
    leave([joined, *running[1:]])
    single = 1 / statistics.median(one + alone(engine, options))
    print(f"one stream            {single:6.1f} tokens/s")
    print(f"{options.streams} streams             {together:6.1f} tokens/s, {together / single:.2f} times as many")
    print(f"first token of the last of {options.streams} prompts of {options.prompt} asked for at once: {last_s:.1f} s")
    print(
        f"while a prompt of {options.joins} joins {options.streams - 1} streams: longest gap {gap_s:.2f} s, "
        f"its first token after {end_s - begin_s:.1f} s"
    )
    found = {"one_tok_per_s": single, "tok_per_s": together, "ratio": together / single, "last_first_s": last_s}
    print(json.dumps({"name": "engine", **found, "gap_s": gap_s, "join_s": end_s - begin_s, "pause_s": options.pause}))


def alone(engine: Engine, options: argparse.Namespace) -> list[float]:
    """The steps of one stream."""
    one = ask(engine, options.prompt, 1)
    found = steps(one, options.tokens)
    leave(one)
    return found


class Client:
    """Reads a stream in a thread of its own and notes when each token came."""

    def __init__(self, stream: Stream) -> None:
        self.stream, self.times = stream, list[float]()
        self.thread = threading.Thread(target=self._read)
        self.thread.start()

    def _read(self) -> None:
        for _ in self.stream:
            self.times.append(time.perf_counter())


def ask(engine: Engine, prompt: int, count: int) -> list[Client]:
    """So many requests at once, for all tokens the context has room for."""
    ids = bench.prompt(engine.model.config, prompt)
    samplers = [Sampler(seed=n) for n in range(count)]
    return [Client(engine.submit(ids, sampler=sampler, max_new_tokens=engine.model.context)) for sampler in samplers]


def wait(client: Client, tokens: int) -> None:
    """Until a stream has given so many."""
    while len(client.times) < tokens and client.thread.is_alive():
        time.sleep(0.005)


def leave(clients: list[Client]) -> None:
    """Cancels them all."""
    for client in clients:
        client.stream.cancel()
    for client in clients:
        client.thread.join()


def steps(clients: list[Client], tokens: int) -> list[float]:
    """Seconds from token to token, so many of each client once the last of them has begun."""
    for client in clients:
        wait(client, 1)
    begun = [len(client.times) for client in clients]
    for client, n in zip(clients, begun, strict=True):
        wait(client, n + tokens)
    taken = [client.times[n - 1 : n + tokens] for client, n in zip(clients, begun, strict=True)]
    return [later - earlier for times in taken for earlier, later in itertools.pairwise(times)]


def longest_gap(times: list[float], begin_s: float, end_s: float) -> float:
    """Between two tokens of which the latter came between the two moments, or that have them between them."""
    inside = [(earlier, later) for earlier, later in itertools.pairwise(times) if later > begin_s and earlier < end_s]
    return max((later - earlier for earlier, later in inside), default=0.0)


if __name__ == "__main__":
    main()
