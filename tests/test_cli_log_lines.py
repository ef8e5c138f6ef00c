"""Log lines: in order while somebody reads them, and no burden when nobody does."""

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from glmcpu.cli.log_lines import LINES, LogLines


@contextlib.contextmanager
def piped(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """stderr as a pipe, and its end to read; within a test, since pytest has a stderr of its own for each."""
    read, write = os.pipe()
    with open(write, "w") as stderr, open(read, "rb", buffering=0) as end, monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", stderr)
        yield end


def logger_of(handler: LogLines) -> Any:
    logger = logging.Logger("test", logging.INFO)
    logger.addHandler(handler)
    return logger


def test_lines_are_written_in_order_and_all_before_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    with piped(monkeypatch) as end:
        handler = LogLines()
        for n in range(100):
            logger_of(handler).info("line %d 好 \ud800", n)
        handler.close()
        assert end.read(1 << 16) == "".join(f"line {n} 好 \\ud800\n" for n in range(100)).encode()


def test_a_pipe_nobody_reads_drops_lines_and_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    with piped(monkeypatch) as end:
        handler = LogLines()
        for _ in range(2 * LINES):
            logger_of(handler).info("x" * 500)
        handler.close()
        assert handler._writer.is_alive()
        assert handler._lines.full()
        end.close()  # the reader is gone, so writing fails and nothing waits any more
        handler._lines.put(None)
        handler._writer.join(20)
        assert not handler._writer.is_alive()


@pytest.mark.parametrize("stderr", [None, io.StringIO()], ids=["none", "no file"])
def test_without_a_stderr_lines_go_nowhere(stderr: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = LogLines()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", stderr)
        logger_of(handler).info("hello")
        handler.close()
    assert not handler._writer.is_alive()
