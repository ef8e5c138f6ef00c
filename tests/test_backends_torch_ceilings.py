"""A torch device's limits, and `glmcpu bench` on the torch backend."""

import json
from pathlib import Path

import pytest
from tiny_random import CHATGLM, TINY, quiet

pytest.importorskip("torch", reason="torch is not installed")

from glmcpu import bench, cli, random_weights


@pytest.fixture
def file(tmp_path: Path) -> Path:
    target = tmp_path / "tiny.safetensors"
    random_weights.write(target, "chatglm", CHATGLM.Config(**TINY), "int4_g32", quiet)
    return target


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glmcpu.backends.torch_ceilings.READ_BYTES", {"cpu": 1 << 20})
    monkeypatch.setattr("glmcpu.backends.torch_ceilings.SIDE", {"cpu": 64})


def test_ceilings_are_measured_and_the_device_is_named() -> None:
    limits = bench.ceilings_of({"backend": "torch", "threads": 1, "device": "cpu", "dtype": "f32"})
    assert min(limits.read_gb_per_s, limits.dot_gmac_per_s, limits.fma_gmac_per_s) > 0
    found = limits.machine()
    assert found["isa"] == "float32"
    assert "cpu" in found["cpu"]
    assert found["threading_layer"].startswith("torch ")
    assert (limits.peak_bytes() or 1) > 0


def test_bench_measures_the_torch_backend(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lengths = ("--prompts", "4", "--contexts", "4,20", "--batch", "1,2", "--tokens", "2", "--repeats", "1")
    code = cli.main(["bench", str(file), "--backend", "torch", "--device", "cpu", "-t", "1", *lengths, "--json"])
    out, _ = capfd.readouterr()
    assert code == 0
    run = json.loads(out.splitlines()[-1])
    assert [(row["context"], row["batch"]) for row in run["decode"]] == [(4, 1), (4, 2), (20, 1), (20, 2)]
    assert all(row["tok_per_s"] > 0 and row["of_ceiling"] > 0 for row in run["decode"])
    assert run["cache"] == "f32"
