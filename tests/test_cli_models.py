"""convert, ls, rm, verify and info over a models folder whose files are described by a stand-in."""

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from glmcpu import cli, limits
from glmcpu.errors import DataError, NetworkError


@dataclass
class Config:
    layers: int = 2
    channels: int = 64


@dataclass
class Described:
    """What glmcpu.model.describe says of a file."""

    file_bytes: int
    generation: str = "chatglm"
    config: Config = field(default_factory=Config)
    formats: dict = field(
        default_factory=lambda: {"lm_head": "f16", "layers.0.qkv": "int4_g32", "layers.1.qkv": "int4_g32"}
    )
    weights: str = "int4_g32"
    bits_per_weight: float = 4.5
    source: dict = field(
        default_factory=lambda: {"name": "a\x1b[2J", "files": {"x.bin": {"size": 3}}, "revision": None}
    )
    has_tokenizer: bool = True

    def memory_bytes(self, context):
        return self.file_bytes + context


def describe(path):
    if b"broken" in Path(path).read_bytes():
        raise DataError(f"{path}: no packed model")
    return Described(path.stat().st_size)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("GLMCPU_HOME", str(tmp_path / "models"))
    monkeypatch.setattr("glmcpu.model.describe", describe)
    monkeypatch.setattr(sys, "stdin", None)
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def run(capfd, *arguments):
    code = cli.main(arguments)
    return code, *capfd.readouterr()


def test_ls_shows_name_format_size_and_date(home, capfd):
    (home / "big.safetensors").write_bytes(b"x" * 2_000_000)
    (home / "bad.safetensors").write_bytes(b"broken")
    code, out, err = run(capfd, "ls")
    assert (code, err) == (0, "")
    bad, big = out.splitlines()
    assert re.fullmatch(r"big  int4_g32  2\.0 MB  \d{4}-\d\d-\d\d \d\d:\d\d", big)
    assert re.match(r"bad  broken    0\.0 kB", bad)


def test_ls_of_an_empty_folder_shows_the_demo_and_says_how_to_get_a_model(home, capfd):
    code, out, err = run(capfd, "ls")
    assert code == 0
    assert re.match(r"demo  \w+  \d+\.\d MB  [\d-]+ [\d:]+\n$", out)
    assert "glmcpu convert" in err


def test_rm_deletes_one_model(home, capfd):
    for name in ("a", "b"):
        (home / f"{name}.safetensors").write_bytes(b"x")
    code, out, _ = run(capfd, "rm", "a", "--yes")
    assert code == 0
    assert out.startswith("removed ")
    assert [p.name for p in home.iterdir()] == ["b.safetensors"]


def test_rm_without_yes_and_without_a_person_deletes_nothing(home, capfd):
    (home / "a.safetensors").write_bytes(b"x")
    code, _, err = run(capfd, "rm", "a")
    assert code == 2
    assert "--yes" in err
    assert (home / "a.safetensors").exists()


@pytest.mark.parametrize(("reply", "left"), [(True, 0), (False, 1)])
def test_rm_asks_a_person(home, capfd, monkeypatch, reply, left):
    (home / "a.safetensors").write_bytes(b"x")
    monkeypatch.setattr("glmcpu.cli.terminal.is_terminal", lambda _: True)
    monkeypatch.setattr("click.confirm", lambda *_, **__: reply)
    assert run(capfd, "rm", "a.safetensors")[0] == 0
    assert len(list(home.iterdir())) == left


@pytest.mark.parametrize("name", ["../other", "/etc/passwd", "..", "", "aa", "~/x.safetensors"])
def test_rm_touches_nothing_outside_the_models_folder(home, capfd, name):
    (home / "a.safetensors").write_bytes(b"x")
    (home.parent / "other.safetensors").write_bytes(b"x")
    code, _, err = run(capfd, "rm", name, "--yes")
    assert code == 3
    assert err.count("\n") == 1
    assert (home / "a.safetensors").exists()
    assert (home.parent / "other.safetensors").exists()


def test_verify_reads_the_whole_file_and_says_so(home, capfd, monkeypatch):
    (home / "a.safetensors").write_bytes(b"x" * 1000)
    seen = []

    def verify(path, progress):
        seen.append(path)
        progress(1000, 1000)

    monkeypatch.setattr("glmcpu.model.verify", verify)
    code, out, err = run(capfd, "verify", "a")
    assert (code, seen) == (0, [home / "a.safetensors"])
    assert "all checksums match" in out
    assert err == ""


def test_info_of_a_model_says_memory_needed_and_available(home, capfd, monkeypatch):
    (home / "a.safetensors").write_bytes(b"x" * 5_000_000)
    monkeypatch.setattr("glmcpu.memory.available_bytes", lambda: 6_000_000)
    code, out, _ = run(capfd, "info", "a", "--context", "2000000")
    assert code == 2
    code, out, _ = run(capfd, "info", "a", "--context", "1000000")
    assert code == 0
    assert "memory for 1,000,000 tokens  6 MB, 6 MB available: enough" in out
    assert "int4_g32, 4.50 bits per weight" in out
    assert "1 x f16, 2 x int4_g32" in out
    assert re.search(r"^config channels +64$", out, re.MULTILINE)
    assert re.search(r"^source x.bin +size 3$", out, re.MULTILINE)
    assert "revision" not in out
    assert "\x1b" not in out
    monkeypatch.setattr("glmcpu.memory.available_bytes", lambda: 4_000_000)
    assert "NOT enough" in run(capfd, "info", "a", "--context", "2048")[1]


def test_info_without_a_file_is_about_the_machine(home, capfd):
    code, out, _ = run(capfd, "info")
    assert code == 0
    for name in ("cpu", "isa", "threads", "threading layer", "memory available"):
        assert re.search(rf"^{name}\b", out, re.MULTILINE)


def test_info_shows_every_limit(home, capfd):
    out = run(capfd, "info", "--limits")[1]
    assert {line.split()[0].upper() for line in out.splitlines()} == {n for n in vars(limits) if n.isupper()}


@pytest.fixture
def converted(home, monkeypatch):
    """The arguments that glmcpu.convert.convert was called with; it writes 3 MB to the destination."""
    calls = []

    def convert(source, destination=None, *, progress, **options):
        calls.append((source, destination, options))
        if source == "nohub/model":
            raise NetworkError("https://huggingface.co: cannot be reached; check the network, or use --offline")
        path = Path(destination or home / "chatglm-6b-int4_g32.safetensors")
        path.write_bytes(b"x" * 3_000_000)
        for done in range(11):
            progress("convert", done * 300_000, 3_000_000)
        return path

    monkeypatch.setattr("glmcpu.convert.convert", convert, raising=False)
    return calls


def test_convert_says_what_it_wrote_and_what_to_do_next(home, converted, capfd):
    code, out, err = run(capfd, "convert", "THUDM/chatglm-6b")
    assert code == 0
    assert out.endswith(": 3.0 MB, int4_g32, 4.50 bits per weight; next: glmcpu chat chatglm-6b-int4_g32\n")
    assert err == ""
    options = {"weights": "int4_g32", "tokenizer": None, "revision": None, "offline": False}
    options |= {"bits": None, "calibrate": None, "calibration_tokens": 8192, "adapter": None, "lora_alpha": None}
    assert converted == [("THUDM/chatglm-6b", None, options)]


def test_convert_passes_every_option_on(home, converted, capfd, tmp_path):
    target = str(tmp_path / "my model.safetensors")
    options = ["-w", "int8", "--revision", "v1.1.0", "--offline", "--tokenizer", "t", "--threads", "1"]
    options += ["--calibrate", "c", "--calibration-tokens", "1000", "--adapter", "a", "--lora-alpha", "16"]
    code, out, _ = run(capfd, "convert", "folder", target, *options)
    assert code == 0
    assert out.rstrip().endswith(f'glmcpu chat "{target}"')
    expected = {"weights": "int8", "tokenizer": "t", "revision": "v1.1.0", "offline": True}
    expected |= {"bits": None, "calibrate": "c", "calibration_tokens": 1000, "adapter": "a", "lora_alpha": 16.0}
    assert converted == [("folder", target, expected)]


def test_convert_without_network_ends_with_5(home, converted, capfd):
    code, out, err = run(capfd, "convert", "nohub/model")
    assert (code, out) == (5, "")
    assert err.count("\n") == 1


def test_convert_without_tokenizer_says_how_to_add_one(home, converted, capfd, monkeypatch):
    monkeypatch.setattr("glmcpu.model.describe", lambda _: Described(1, has_tokenizer=False))
    assert "--tokenizer FILE" in run(capfd, "convert", "folder")[1]
