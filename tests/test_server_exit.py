"""The process of a server that has ended does not linger."""

import subprocess
import sys

import pytest

pytest.importorskip("uvicorn")

SCRIPT = """
import atexit, threading
from glmcpu.server.run import exit_now
threading.Thread(target=threading.Event().wait).start()  # as a thread that still compiles
atexit.register(print, "late")
print("said", end="")
exit_now()
"""


def test_neither_threads_nor_the_interpreters_own_end_are_waited_for_and_nothing_said_is_lost() -> None:
    ended = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "said", "")
