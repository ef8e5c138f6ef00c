"""The server under load and abuse: crowds, slow clients, clients that leave, signals, and what a stream costs.

    python benchmarks/server.py [PART ..] [--model demo] [--clients 256] [--burst 1000] [--requests 20000] ...

    clients      all at once: is every request answered or refused, refused within 100 ms, and what of /health?
    soak         thousands of requests, some broken off, some malformed: does anything grow, is any answer wrong?
    slow         connections that send a byte now and then: ended at their deadlines, noticed by others?
    disconnects  clients that leave at random moments: what is still done for them, is every place free again?
    signals      SIGTERM at random moments: status 0, in time?
    overhead     one stream against Model.generate, on a model of realistic size and on the demo

All parts if none is named, which takes about forty minutes; a tenth of every number takes about five. Everything runs
on 127.0.0.1 and ends by itself. It needs Linux, whose /proc tells what the server uses. The last line is JSON.
"""

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

import server_clients
import server_disconnects
import server_overhead
import server_signals
import server_slow
import server_soak

from glmcpu import Model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART")
    parser.add_argument("--model", default="demo")
    for name, default in _NUMBERS.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    if unknown := set(options.parts) - set(_PARTS):
        parser.error(f"no part {' '.join(unknown)}; there are {' '.join(_PARTS)}")
    if not sys.platform.startswith("linux"):
        parser.error("this needs Linux")
    eos = Model.load(options.model).language_model.config.eos
    found: dict[str, Any] = {}
    for name in options.parts or _PARTS:
        print(f"--- {name}", flush=True)
        found[name] = _PARTS[name](options, eos)
    print(json.dumps({"name": "server", **found}))


def _overhead(options: argparse.Namespace, eos: int) -> dict[str, Any]:
    with server_overhead.larger(options.channels, options.layers) as path:
        larger = server_overhead.run(str(path), eos, 48, options.pairs)
    return {"larger": larger, "demo": server_overhead.run("demo", eos, 200, options.pairs)}


_NUMBERS = {
    "clients": 256,
    "burst": 1000,
    "repeats": 5,
    "requests": 20_000,
    "slow": 500,
    "rounds": 5,
    "disconnects": 1000,
    "signals": 200,
    "pairs": 20,
    "channels": 2048,
    "layers": 12,
}
_PARTS: dict[str, Callable[[argparse.Namespace, int], dict[str, Any]]] = {
    "clients": lambda o, eos: server_clients.run(o.model, eos, o.clients, o.burst, o.repeats),
    "soak": lambda o, eos: server_soak.run(o.model, o.requests),
    "slow": lambda o, eos: server_slow.run(o.model, eos, o.slow, o.rounds),
    "disconnects": lambda o, eos: server_disconnects.run(o.model, eos, o.disconnects),
    "signals": lambda o, eos: server_signals.run(o.model, eos, o.signals),
    "overhead": _overhead,
}

if __name__ == "__main__":
    main()
