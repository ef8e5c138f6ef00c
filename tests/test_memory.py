"""The door for large allocations, and what the machine says it has."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glmcpu import memory
from glmcpu.errors import MachineError


def test_an_array_comes_zeroed() -> None:
    array = memory.alloc((2, 3), np.uint16, "the test")
    assert (array.shape, array.dtype) == ((2, 3), np.uint16)
    assert not array.any()


@pytest.mark.parametrize("shape", [(1 << 45,), (1 << 40, 1 << 40), (1 << 62, 1 << 62)])
def test_what_no_machine_has_is_one_sentence_with_its_size(shape: tuple[int, ...]) -> None:
    with pytest.raises(MachineError, match=r"^no memory for the KV cache: [\d,]+ MB asked for; close other programs"):
        memory.alloc(shape, np.float32, "the KV cache")


def test_a_refusal_of_the_system_is_a_machine_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(np, "zeros", refuse)
    with pytest.raises(MachineError, match="no memory for the weights: 4 MB asked for"):
        memory.alloc((1_000_000,), np.float32, "the weights")


def test_require_names_what_is_needed_and_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 2_000_000_000)
    memory.require(2_000_000_000, "model.safetensors", memory.available_bytes())
    with pytest.raises(MachineError, match=r"^model.safetensors needs 2,500 MB of memory and 2,000 MB are available; "):
        memory.require(2_500_000_000, "model.safetensors", memory.available_bytes())


def test_require_lets_pass_where_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: None)
    memory.require(1 << 60, "anything", memory.available_bytes())


def test_available_memory_is_a_sensible_number() -> None:
    have = memory.available_bytes()
    assert have is None or 1 << 20 < have < 1 << 50


@pytest.mark.skipif(sys.platform != "linux", reason="the files of Linux")
@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:  5 kB\n"}, 5 * 1024),
        ({"/proc/meminfo": "MemAvailable: 5 kB\n", "/sys/fs/cgroup/memory.max": "max\n"}, 5 * 1024),
        (
            {
                "/proc/meminfo": "MemAvailable: 5 kB\n",
                "/sys/fs/cgroup/memory.max": "4000\n",
                "/sys/fs/cgroup/memory.current": "3500\n",
                "/sys/fs/cgroup/memory.stat": "anon 1\ninactive_file 100\nactive_file 50\n",
            },
            650,
        ),
        (
            {
                "/sys/fs/cgroup/memory/memory.limit_in_bytes": "4000\n",
                "/sys/fs/cgroup/memory/memory.usage_in_bytes": "5000\n",
            },
            0,
        ),
        ({}, None),
    ],
    ids=["no container", "no limit", "version 2", "version 1, over its limit", "nothing known"],
)
def test_the_containers_limit_counts(
    files: dict[str, str], expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_text(path: Path, *_: Any) -> str:
        if str(path) not in files:
            raise FileNotFoundError(str(path))
        return files[str(path)]

    monkeypatch.setattr(Path, "read_text", read_text)
    assert memory.available_bytes() == expected


def test_megabytes_are_written_with_commas() -> None:
    assert memory.megabytes(1_234_567_890) == "1,235 MB"
    assert memory.megabytes(0) == "0 MB"
