"""How fast is each kernel, on each ISA, against what the machine can do and against other libraries' 4-bit products?

    python benchmarks/kernels.py [--isas avx512_vnni,avx2] [--formats int4_g32,int8] [--tokens 1,8,128] [--quick]
    python benchmarks/kernels.py --peers-python PEERS/bin/python          (pip install onnxruntime onnx openvino)

Three tables for each ISA, which runs in a process of its own:

    matmul       the four matrices of one layer of ChatGLM-6B in every format, quantizing the activations included.
                 Few tokens are bound by reading the weights (of read), many by multiplying (of peak: the dot product
                 of bytes, or the multiply-add of floats for f16 and f32, operands in registers)
    attention    one layer, T queries over S positions, the cache in half precision and in int8; of peak: floats
    small        the rest of a layer: microseconds, and bytes read and written, which may come from a cache

With --peers-python the best ISA's product against onnxruntime's MatMulNBits (products of bytes: accuracy_level 4) and
OpenVINO's int4 (bf16 and f32 arithmetic), in turn, the others stopped, ratios of medians. At group 32 all have equally
many scales; we have no group of 128, so beside theirs stands our int4 with one scale a row, and no goal. All numbers
are medians; what is read comes from memory. The last line is JSON.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from peer_process import Contestant, in_turn, ratios, shown_ratio, summary, warn_if_busy

from glmcpu import formats
from glmcpu.kernels.threads import physical_cores
from glmcpu.simd import isa

TOKENS = (1, 2, 4, 8, 16, 128, 512)
ATTENTION = ((1, 512), (1, 1900), (8, 1900), (512, 512), (1900, 1900))
KINDS = ("f16", "int8")
SMALL = ("layer_norm", "gelu", "scale_add", "quantize_rows", "append")
SMALL_TOKENS = (1, 512)
GROUPS = {32: "int4_g32", 128: "int4"}
"""Group of the peers' weights -> our format beside it."""
PEERS = {
    "onnxruntime": ("kernel_onnxruntime.py", "-"),
    "OpenVINO bf16": ("kernel_openvino.py", "bf16"),
    "OpenVINO f32": ("kernel_openvino.py", "f32"),
}
PEER_TOKENS = (128, 512)
GOALS = {"onnxruntime": 1.5, "OpenVINO bf16": 1.2, "OpenVINO f32": 1.2}
PEAK_GOAL = 0.45
OURS = "glmcpu"
LAYER_MAC = 12 * 4096 * 4096  # of the four matrices, for a token
HEADINGS = f"{'ms':>10}{'GB/s':>9}{'of read':>9}{'GMAC/s':>9}{'of peak':>9}"


def main() -> None:
    options = arguments()
    warn_if_busy()
    result: dict[str, Any] = {"name": "kernels", "threads": options.threads, "isas": [], "peers": []}
    for name in options.isas:
        with Contestant(name, sys.executable, "kernel_glmcpu.py", options.threads, isa=name) as contestant:
            found = {"isa": name, **contestant.ask("ceilings")}
            print(
                f"\n{name}   {options.threads} threads   read {found['read_gb_per_s']:.1f} GB/s   "
                f"dot {found['dot_gmac_per_s']:.0f} GMAC/s   fma {found['fma_gmac_per_s']:.0f} GMAC/s"
            )
            found["matmul"] = list(matmul(contestant, options))
            found["attention"] = list(attention(contestant, options.budget_ms))
            found["small"] = list(small(contestant, options.budget_ms))
            result["isas"].append(found)
    for group in GROUPS if options.peers_python else ():
        result["peers"].extend(against_peers(group, options))
    print(json.dumps(result))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--isas", type=words, default=isa.available())
    parser.add_argument("--formats", type=words, default=formats.names())
    parser.add_argument("--tokens", type=numbers, default=list(TOKENS))
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--budget-ms", type=int, default=500, help="for a row")
    parser.add_argument("--rounds", type=int, default=5, help="in turn with the peers")
    parser.add_argument("--peers-python", metavar="PYTHON", help="of an environment with onnxruntime and openvino")
    parser.add_argument("--quick", action="store_true", help="the first ISA, int4_g32, few tokens, less time for a row")
    options = parser.parse_args()
    if options.quick:
        options.isas, options.formats, options.tokens = options.isas[:1], ["int4_g32"], [1, 8, 128]
        options.budget_ms, options.rounds = 100, 2
    return options


def words(text: str) -> list[str]:
    return text.split(",")


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def matmul(contestant: Contestant, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Prints and yields the rows of all formats."""
    print(f"\n{'matmul':16}{'tokens':>8}{HEADINGS}")
    for name in options.formats:
        for T in options.tokens:
            row = rates(contestant.ask(f"matmul {name} {T} {options.budget_ms}"))
            print(f"{name:16}{T:8}{line(row)}", flush=True)
            yield {"format": name, "tokens": T, **row}


def attention(contestant: Contestant, budget_ms: int) -> Iterator[dict[str, Any]]:
    """Prints and yields the rows of both kinds of cache."""
    print(f"\n{'attention':16}{'tokens':>8}{HEADINGS}")
    for kind in KINDS:
        for T, S in ATTENTION:
            row = rates(contestant.ask(f"attend {kind} {T} {S} {budget_ms}"))
            print(f"{f'{kind} over {S}':16}{T:8}{line(row)}", flush=True)
            yield {"cache": kind, "tokens": T, "positions": S, **row}


def small(contestant: Contestant, budget_ms: int) -> Iterator[dict[str, Any]]:
    """Prints and yields the rows of everything else."""
    print(f"\n{'small':16}{'tokens':>8}{'us':>10}{'GB/s':>9}")
    for name in SMALL:
        for T in SMALL_TOKENS:
            row = rates(contestant.ask(f"small {name} {T} {budget_ms}"))
            print(f"{name:16}{T:8}{1e3 * row['ms']:10.1f}{row['gb_per_s']:9.1f}", flush=True)
            yield {"kernel": name, "tokens": T, "ms": row["ms"], "gb_per_s": row["gb_per_s"]}


def rates(answer: dict[str, Any]) -> dict[str, float]:
    """Milliseconds of a run, the rates, and their shares of the ceilings."""
    seconds = statistics.median(answer["seconds"])
    gb_per_s, gmac_per_s = answer["bytes"] / seconds / 1e9, answer["mac"] / seconds / 1e9
    found = {
        "ms": 1e3 * seconds,
        "gb_per_s": gb_per_s,
        "of_read": gb_per_s / answer["read_gb_per_s"],
        "gmac_per_s": gmac_per_s,
        "of_peak": gmac_per_s / answer["peak_gmac_per_s"],
    }
    return {key: float(f"{value:.4g}") for key, value in found.items()}


def line(row: dict[str, float]) -> str:
    return f"{row['ms']:10.3g}{row['gb_per_s']:9.1f}{row['of_read']:9.0%}{row['gmac_per_s']:9.0f}{row['of_peak']:9.0%}"


def against_peers(group: int, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Prints and yields the rows of one group size."""
    goals = GOALS if GROUPS[group] == "int4_g32" else {}
    with ExitStack() as stack:
        ours = stack.enter_context(Contestant(OURS, sys.executable, "kernel_glmcpu.py", options.threads))
        peers = [
            stack.enter_context(Contestant(name, options.peers_python, script, group, hint, options.threads))
            for name, (script, hint) in PEERS.items()
        ]
        print(f"\n{f'group {group}':16}{'tokens':>8}{'GMAC/s (p10..p90)':>24}{'ours / it':>20}{'of dot peak':>18}")
        for T in PEER_TOKENS:
            peaks: list[float] = []

            def rate(contestant: Contestant, T: int = T, peaks: list[float] = peaks) -> list[float]:
                """GMAC/s of each run."""
                if contestant is not ours:
                    seconds = contestant.ask(f"matmul {T} {options.budget_ms}")
                    return [T * LAYER_MAC / s / 1e9 for s in seconds]
                answer = ours.ask(f"matmul {GROUPS[group]} {T} {options.budget_ms}")
                peaks.append(answer["peak_gmac_per_s"])
                return [answer["mac"] / s / 1e9 for s in answer["seconds"]]

            found = in_turn([ours, *peers], options.rounds, rate)
            yield compared(group, T, found, statistics.median(peaks), goals)


def compared(group: int, T: int, found: dict[str, list[float]], peak: float, goals: dict[str, float]) -> dict[str, Any]:
    """Prints one number of tokens, and gives it as JSON."""
    values = {name: summary(rates) for name, rates in found.items()}
    against = ratios({name: numbers["median"] for name, numbers in values.items()}, OURS, goals)
    of_peak = values[OURS]["median"] / peak
    for name, numbers in values.items():
        shown = "{median:.0f} ({p10:.0f}..{p90:.0f})".format(**numbers)
        end = f"{shown_ratio(against.get(name)):>20}"
        if name == OURS:
            name, goal = (
                GROUPS[group],
                f" >= {PEAK_GOAL:.0%} {'yes' if of_peak >= PEAK_GOAL else 'NO'}" if goals else "",
            )
            end += f"{f'{of_peak:.0%}{goal}':>18}"
        print(f"{name:16}{T:8}{shown:>24}{end}", flush=True)
    return {"group": group, "tokens": T, "gmac_per_s": values, "ratios": against, "of_dot_peak": round(of_peak, 3)}


if __name__ == "__main__":
    main()
