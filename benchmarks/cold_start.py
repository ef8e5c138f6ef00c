"""How long from the start of the program to its prompt?

    python benchmarks/cold_start.py MODEL [--runs N] [--compilations N]

`glmcpu chat MODEL` on a pseudo-terminal until it asks for a question: with the kernels this machine keeps, and with an
empty folder of kernels, when all are compiled. Beside it the parts: an empty Python, `import glmcpu`, and Model.load.
Every run is a process of its own; medians, and the spread. MODEL needs a tokenizer and is read once before, so that
what the disk costs is left out. POSIX only. The last line is the same as JSON.
"""

import argparse
import json
import os
import pty
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from glmcpu import store
from glmcpu.cli.repl import QUESTION

PATIENCE_S = 120
LOAD = "import sys, glmcpu; glmcpu.Model.load(sys.argv[1])"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--compilations", type=int, default=2, help="runs with an empty folder of kernels")
    options = parser.parse_args()
    model = os.fspath(store.find(options.model).resolve())
    until_prompt(model, {})  # reads the file, compiles what is missing
    result = {
        "empty_python_s": repeated(options.runs, "an empty Python", lambda: until_end("pass")),
        "import_s": repeated(options.runs, "import glmcpu", lambda: until_end("import glmcpu")),
        "load_s": repeated(options.runs, "import and Model.load", lambda: until_end(LOAD, model)),
        "prompt_s": repeated(options.runs, "glmcpu chat, to the prompt", lambda: until_prompt(model, {})),
        "first_prompt_s": repeated(options.compilations, "the same, kernels compiled", lambda: first_prompt(model)),
    }
    print(json.dumps({"name": "cold_start", **result}))


def repeated(runs: int, what: str, run: Callable[[], float]) -> float:
    """Prints and returns the median of some runs."""
    seconds = sorted(run() for _ in range(runs))
    middle = statistics.median(seconds)
    print(f"{what:28}{middle:8.2f} s   ({seconds[0]:.2f} .. {seconds[-1]:.2f}, {runs} runs)")
    return round(middle, 3)


def until_end(code: str, *arguments: str) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, *arguments], check=True)
    return time.perf_counter() - begin


def first_prompt(model: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        return until_prompt(model, {"GLMCPU_CACHE": folder})


def until_prompt(model: str, settings: dict[str, str]) -> float:
    """Seconds from the start of `glmcpu chat` until its prompt is on the terminal."""
    ours, theirs = pty.openpty()
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "glmcpu", "chat", model],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", **settings},
    )
    os.close(theirs)
    shown = b""
    try:
        while QUESTION.encode() not in shown:
            if time.perf_counter() - begin > PATIENCE_S:
                raise SystemExit(f"no prompt within {PATIENCE_S} s")
            shown += read(ours, shown)
        return time.perf_counter() - begin
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def read(terminal: int, shown: bytes) -> bytes:
    try:
        return os.read(terminal, 1 << 12)
    except OSError:  # what Linux answers when the program has ended
        raise SystemExit(f"glmcpu chat ended before its prompt: {shown.decode(errors='replace').strip()}") from None


if __name__ == "__main__":
    main()
