"""Far more clients than places: is every request answered or refused, how fast are refusals, and is /health heard?

Beside the clients' times stands the server's processor time, which other programs on the machine do not change.
"""

from collections import Counter
from typing import Any

from server_client import chat, percentile, request
from server_crowd import Visit, visit
from server_process import Server

_TOKENS, _LIMIT_S, _HEALTH_EVERY_S = 32, 120.0, 0.02


def run(model: str, eos: int, clients: int, burst: int, repeats: int) -> dict[str, Any]:
    """Measures and prints."""
    kinds = {"at once": (clients, 0.0), "in 0.25 s": (clients, 0.25), "in 1 s": (burst, 1.0)}
    found: dict[str, Any] = {}
    with Server(model) as server:
        for name, (count, within_s) in kinds.items():
            visits, health, cpu_s = list[Visit](), list[Visit](), server.cpu_s()
            for _ in range(repeats):
                crowd = [Visit(chat("hello", _TOKENS, seed=n, eos=eos), within_s * n / count) for n in range(count)]
                looks = [Visit(request("GET", "/health"), _HEALTH_EVERY_S * n) for n in range(int((1 + within_s) * 50))]
                visit(server.port, crowd + looks, _LIMIT_S)
                visits, health = visits + crowd, health + looks
            label = f"{count} {name}"
            found[label] = {
                "statuses": {str(status): n for status, n in Counter(each.status for each in visits).items()},
                "failures": dict(Counter(each.failure for each in visits if each.failure)),
                "cut_off": sum(not each.complete() for each in visits),
                "refused_ms": _spread([each.seconds for each in visits if each.status in (429, 503)]),
                "refused_in_100_ms": _share([each.seconds for each in visits if each.status in (429, 503)], 0.1),
                "health_ms": _spread([each.seconds for each in health]),
                "health": {str(status): n for status, n in Counter(each.status for each in health).items()},
                "cpu_ms": 1000 * (server.cpu_s() - cpu_s) / len(visits),
            }
            print(label, found[label], flush=True)
        print(server.used())
    return found


def _spread(seconds: list[float]) -> dict[str, float]:
    shares = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {name: round(1000 * percentile(seconds, share), 1) for name, share in shares.items()}


def _share(seconds: list[float], limit_s: float) -> float:
    return round(sum(each <= limit_s for each in seconds) / len(seconds), 4) if seconds else 1.0
