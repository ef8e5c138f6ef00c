"""What does each format cost in quality, and what does calibration win back?

    python benchmarks/quantization.py [MODEL] [--text FILE] [--calibration FILE] [--speed] [--only NAME,NAME..]

MODEL is a packed model in f16 or f32, by default the one that comes with glmcpu; the text is the held-out script of
demo/, whose names, numbers and wordings its training never saw, and the calibration text the one that comes with
glmcpu. Each row is the model in another format, compared with MODEL id by id (glmcpu eval): bits per weight, KL
divergence, perplexity, top-1 agreement, and the share of the held-out questions answered rightly. Two rows are other
people's schemes:

    q4_0     llama.cpp's and chatglm.cpp's: 32 inputs share a half, the weight furthest from 0 divided by -8; nearest
    int4     the official one: a scale for each output; nearest

--speed adds tokens per second of the 6B shape with random weights at a context of 128 (glmcpu bench), which takes some
minutes and 3 to 7 GB of disk for each format. The last line is the same as JSON.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).parents[1]))  # demo/ is not installed

from demo import check
from glmcpu import formats, store
from glmcpu.convert import convert

GROUP = 32
# name -> what convert is told; the first are rounded to nearest or by smallest squared error
ROWS: dict[str, dict[str, Any]] = {
    "int8": {"weights": "int8"},
    "q4_0": {"weights": "int4_g32"},
    "int4": {"weights": "int4"},
    "int4_g32": {"weights": "int4_g32"},
    "int4_g64": {"weights": "int4_g64"},
    "int4_g128": {"weights": "int4_g128"},
    "int3_g32": {"weights": "int3_g32"},
    "int4_g32 calibrated": {"weights": "int4_g32", "calibrate": True},
    "int4_g64 calibrated": {"weights": "int4_g64", "calibrate": True},
    "int4_g128 calibrated": {"weights": "int4_g128", "calibrate": True},
    "int3_g32 calibrated": {"weights": "int3_g32", "calibrate": True},
    "4.25 bits calibrated": {"bits": 4.25, "calibrate": True},
    "5 bits calibrated": {"bits": 5, "calibrate": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path, default=store.embedded())
    parser.add_argument("--text", type=Path)
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--only", type=lambda text: text.split(","))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = options.text or check.write_script(Path(folder) / "held_out.jsonl")
        rows = {name: ROWS[name] for name in options.only or ROWS}
        paths = {
            name: make(options.model, Path(folder) / f"{n}.safetensors", name, row, options.calibration)
            for n, (name, row) in enumerate(rows.items())
        }
        tables = compare(options.model, list(paths.values()), text)
        print("| format | bits per weight | KL divergence | perplexity | top-1 | right answers | tok/s |")
        print("|---|---:|---:|---:|---:|---:|---:|")
        speeds: dict[str, float] = {}
        for (name, path), found in zip(paths.items(), tables, strict=True):
            weights = rows[name].get("weights", "")  # a mixture's speed lies between those of its formats
            if options.speed and weights and weights not in speeds:
                speeds[weights] = speed(weights)
            found |= {"name": name, "right": right(path), "tok_per_s": speeds.get(weights)}
            kl, rate = found["kl"], found["tok_per_s"]
            cells = [
                f"{found['bits_per_weight']:.2f}",
                f"{kl['mean']:.2e} ± {kl['se']:.0e}",
                f"{found['perplexity']:.4f}",
                f"{kl['top1']:.2%}",
                f"{found['right']:.1%}",
                "" if rate is None else f"{rate:.1f}",
            ]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print(json.dumps(tables))


def make(source: Path, path: Path, name: str, row: dict[str, Any], calibration: Path | None) -> Path:
    """The model in that format."""
    given = {**row}
    if given.get("calibrate"):
        given["calibrate"] = calibration or "included"
    with q4_0_in_place_of_int4_g32() if name == "q4_0" else nullcontext():
        convert(source, path, **given)
    return path


@contextmanager
def q4_0_in_place_of_int4_g32() -> Iterator[None]:
    """While it lasts, int4_g32 chooses codes and scales as llama.cpp does; it stores both schemes."""
    form = formats.load("int4_g32")

    def pack(weight: NDArray[np.float32], scale: NDArray[np.float32] | None = None) -> dict[str, NDArray[Any]]:
        O, I = weight.shape
        grouped = np.pad(weight, ((0, 0), (0, -I % GROUP))).reshape(O, -1, GROUP)
        furthest = np.take_along_axis(grouped, np.abs(grouped).argmax(axis=2)[:, :, None], 2)
        scales = furthest / np.float32(-8)
        inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
        codes = np.minimum(np.trunc(grouped * inverse + np.float32(8.5)), 15) - 8
        return form.store(codes.reshape(O, -1)[:, :I].astype(np.int8), scales[:, :, 0])  # type: ignore[attr-defined]

    with patch.object(form, "pack", pack):
        yield


def compare(reference: Path, paths: list[Path], text: Path) -> list[dict[str, Any]]:
    """What `glmcpu eval --json` says of each."""
    command = [
        sys.executable,
        "-m",
        "glmcpu",
        "eval",
        *map(str, paths),
        "-r",
        str(reference),
        "--text",
        str(text),
        "--json",
    ]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    models: list[dict[str, Any]] = json.loads(out.splitlines()[-1])["models"]
    return models


def right(path: Path) -> float:
    """The share of the held-out questions that are answered rightly."""
    result = check.check(path)
    return sum(result.right.values()) / sum(result.given.values())


def speed(weights: str) -> float:
    """Tokens per second of the 6B shape, one sequence at a context of 128."""
    command = [sys.executable, "-m", "glmcpu", "bench", "chatglm-6b", "--weights", weights, "--json"]
    command += ["--prompts", "128", "--contexts", "128", "--batch", "1"]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(json.loads(out.splitlines()[-1])["decode"][0]["tok_per_s"])


if __name__ == "__main__":
    main()
