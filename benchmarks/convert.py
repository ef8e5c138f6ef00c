"""How long does a full-size conversion take, and how much memory?

    python benchmarks/random_checkpoint.py CHECKPOINT           once: 13.4 GB
    python benchmarks/convert.py CHECKPOINT [--weights FORMAT] [--runs N]

Each run is a process of its own; the files are read once before, so that they are in the page cache where it is large
enough. Peak memory is the process's own (ru_maxrss). Ceiling: the same bytes read and written back with nothing
computed. The last line is the same as JSON.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHILD = "import sys; from glmcpu.convert import convert; convert(sys.argv[1], sys.argv[2], weights=sys.argv[3])"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--weights", default="int4_g32")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    source_bytes = sum(path.stat().st_size for path in options.checkpoint.iterdir())
    with tempfile.TemporaryDirectory(dir=options.checkpoint.parent) as folder:
        target = Path(folder) / "model.safetensors"
        read_s = read_all(options.checkpoint)
        print(f"checkpoint {source_bytes / 1e9:.2f} GB   read once {source_bytes / 1e9 / read_s:.1f} GB/s")
        seconds, peaks = [], []
        for run in range(options.runs):
            begin = time.perf_counter()
            peaks.append(
                run_child([sys.executable, "-c", CHILD, str(options.checkpoint), str(target), options.weights])
            )
            seconds.append(time.perf_counter() - begin)
            print(f"  run {run + 1}   {seconds[-1]:6.1f} s   peak memory {peaks[-1] / 1e6:,.0f} MB")
        written = target.stat().st_size
        write_s = write_plain(Path(folder) / "plain", written)
    result = {
        "name": "convert",
        "weights": options.weights,
        "source_bytes": source_bytes,
        "written_bytes": written,
        "median_s": round(statistics.median(seconds), 1),
        "ceiling_s": round(read_s + write_s, 1),
        "peak_rss_bytes": max(peaks),
    }
    print(f"median {result['median_s']} s   reading and writing alone {result['ceiling_s']} s")
    print(json.dumps(result))


def run_child(command: list[str]) -> int:
    """Runs a command to its end; returns its peak memory in bytes."""
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(process.returncode)
    return peak_bytes(usage)


def peak_bytes(usage: resource.struct_rusage) -> int:
    """ru_maxrss in bytes: Linux counts in kB, macOS in bytes."""
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def read_all(folder: Path) -> float:
    buffer, begin = bytearray(1 << 22), time.perf_counter()
    for path in sorted(folder.iterdir()):
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - begin


def write_plain(path: Path, size_bytes: int) -> float:
    block, begin = bytes(1 << 22), time.perf_counter()
    with open(path, "wb", buffering=0) as file:
        for at in range(0, size_bytes, len(block)):
            file.write(block[: size_bytes - at])
        os.fsync(file.fileno())
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
