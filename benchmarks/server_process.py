"""The server as a child process: started, watched from outside and stopped. Linux tells what it uses."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
_START_S = 120.0


class Server:
    """`glmcpu serve MODEL`, or another script of this folder that does the same; a context manager that ends it.

    lines      what it wrote to stderr        log   its JSON lines, one for each request that ended
    """

    def __init__(self, model: object, *arguments: object, script: str = "", until: str = "ready") -> None:
        """Waits until this stands in a line."""
        command = [str(Path(__file__).parent / script)] if script else ["-m", "glmcpu", "serve"]
        self.lines, self.log = list[str](), list[dict[str, Any]]()
        self._changed = threading.Condition()
        self._process = subprocess.Popen(
            [sys.executable, *command, str(model), "--port", "0", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.wait_for(until)
        except BaseException:
            self.kill()
            raise

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                print("the server did not end in 15 s", file=sys.stderr)
        self.kill()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.wait_for(r"listening on http://.*?:(\d+)")[1])

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The first line with this in it."""

        def found() -> re.Match[str] | None:
            return next(filter(None, (re.search(pattern, line) for line in self.lines)), None)

        with self._changed:
            self._changed.wait_for(lambda: found() or self._process.poll() is not None, _START_S)
            if (match := found()) is None:
                raise RuntimeError(f"the server did not say {pattern!r}: {self.lines[-3:]}")
            return match

    def signal(self, number: int) -> None:
        """Sends a signal."""
        self._process.send_signal(number)

    def wait(self, seconds: float) -> int | None:
        """The exit status, None when it is still there after so long."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """Ends it whatever it does."""
        self._process.kill()
        self._process.wait()
        self._reader.join(5)

    def used(self) -> tuple[float, int, int]:
        """(resident MB without what is mapped from files, open descriptors, threads)."""
        process = Path("/proc", str(self._process.pid))
        anonymous = re.search(r"RssAnon:\s+(\d+)", (process / "status").read_text())
        kilobytes = int(anonymous[1]) if anonymous else 0
        return kilobytes / 1024, len(os.listdir(process / "fd")), len(os.listdir(process / "task"))

    def cpu_s(self) -> float:
        """Processor time so far."""
        fields = Path("/proc", str(self._process.pid), "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def settle(self, count: int, seconds: float = 10.0) -> None:
        """Waits for so many log lines."""
        end_s = time.monotonic() + seconds
        with self._changed:
            while len(self.log) < count and time.monotonic() < end_s:
                self._changed.wait(0.1)

    def _read(self) -> None:
        assert self._process.stderr
        for line in self._process.stderr:
            with self._changed:
                if line.startswith("{"):
                    self.log.append(json.loads(line))
                else:
                    self.lines.append(line.rstrip())
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()
