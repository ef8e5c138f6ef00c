"""When the machine refuses or somebody ends the program: the earlier file stays whole, and one line says why."""

import contextlib
import errno
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_checkpoint import write_checkpoint

from glmcpu import cli, packed
from glmcpu.safetensors_header import Entry

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such thing")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has it")

# The command line, with a conversion that says when it is in the middle of writing and then takes its time.
SLOW = """
import sys, time
from glmcpu import cli
from glmcpu.convert import writer
whole = writer._matrix
def slow(*arguments):
    yield from whole(*arguments)
    print("writing", file=sys.stderr, flush=True)
    time.sleep(60)
writer._matrix = slow
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint and a packed model of it in other formats than the default."""
    folder = tmp_path_factory.mktemp("made")
    write_checkpoint(folder / "checkpoint")
    quietly("convert", folder / "checkpoint", folder / "model.safetensors", "-w", "f16")
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def quietly(*arguments: object) -> tuple[int, str]:
    """(exit code, stderr) of the command line in this process."""
    err = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        code = cli.main([str(argument) for argument in arguments])
    return code, err.getvalue()


def run(*arguments: object, **settings: Any) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `python -m glmcpu` in a process of its own."""
    environment = {**os.environ, **settings.pop("env", {})}
    command = [sys.executable, *settings.pop("python", []), "-m", "glmcpu", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, env=environment, timeout=60, **settings)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def slow_conversion(place: Path) -> subprocess.Popen[str]:
    """A conversion over model.safetensors that has begun to write."""
    command = [sys.executable, "-c", SLOW, "convert", str(place / "checkpoint"), str(place / "model.safetensors")]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stderr is not None
    while (line := child.stderr.readline()) != "writing\n":
        if not line:
            pytest.fail(f"ended before it wrote: {child.communicate()[0]}")
    return child


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@POSIX
@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_conversion_that_is_ended_leaves_what_was_there(number: str, code: int, place: Path) -> None:
    before = (place / "model.safetensors").read_bytes()
    child = slow_conversion(place)
    began_s = time.monotonic()
    child.send_signal(getattr(signal, number))
    out, err = child.communicate(timeout=20)
    assert (child.returncode, out) == (code, "")
    assert err in ("glmcpu: interrupted\n", "glmcpu: terminated\n")
    assert time.monotonic() - began_s < 5
    assert (place / "model.safetensors").read_bytes() == before
    assert names(place) == ["checkpoint", "model.safetensors"]


@POSIX
def test_conversion_that_is_killed_leaves_what_was_there_and_the_next_one_cleans_up(place: Path) -> None:
    before = (place / "model.safetensors").read_bytes()
    child = slow_conversion(place)
    child.kill()
    child.communicate(timeout=20)
    assert (place / "model.safetensors").read_bytes() == before
    assert quietly("convert", place / "checkpoint", place / "model.safetensors")[0] == 0
    assert (place / "model.safetensors").read_bytes() != before
    assert names(place) == ["checkpoint", "model.safetensors"]


def test_second_conversion_to_one_file_is_refused(place: Path) -> None:
    child = slow_conversion(place)
    try:
        code, err = quietly("convert", place / "checkpoint", place / "model.safetensors")
        assert code == 4
        assert "another glmcpu is writing it" in err
    finally:
        child.kill()
        child.communicate(timeout=20)


@POSIX
def test_signal_that_meets_a_callback_of_the_compiler_still_ends_the_program() -> None:
    """Python prints and drops an exception that is raised in a callback of C code, or where an object dies."""
    code = """
import sys, time
from glmcpu import cli, store
class Dying:
    def __del__(self):
        raise KeyboardInterrupt
def models():
    Dying()
    for _ in range(400):
        time.sleep(0.05)
    return []
store.models = models
sys.exit(cli.main(["ls"]))
"""
    began_s = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "glmcpu: interrupted\n")
    assert time.monotonic() - began_s < 10


class Failing:
    """A function whose call number `fails_at` raises."""

    def __init__(self, function: Any, error: BaseException) -> None:
        self.function, self.error = function, error
        self.calls, self.fails_at = 0, 0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.calls += 1
        if self.calls == self.fails_at:
            raise self.error
        return self.function(*arguments, **options)


@pytest.mark.parametrize(
    ("module", "name", "error"),
    [
        (np, "zeros", MemoryError()),
        (os, "open", OSError(errno.EIO, "Input/output error")),
        (os, "fsync", OSError(errno.ENOSPC, "No space left on device")),
        (os, "replace", OSError(errno.EDQUOT, "Disk quota exceeded")),
    ],
    ids=["memory", "open", "fsync", "replace"],
)
def test_conversion_whose_nth_call_fails_leaves_the_old_file_or_the_new(
    module: Any, name: str, error: BaseException, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = (place / "model.safetensors").read_bytes()
    assert quietly("convert", place / "checkpoint", place / "new.safetensors")[0] == 0
    new = (place / "new.safetensors").read_bytes()
    (place / "new.safetensors").unlink()
    failing = Failing(getattr(module, name), error)
    monkeypatch.setattr(module, name, failing)
    assert quietly("convert", place / "checkpoint", place / "model.safetensors")[0] == 0
    for n in range(1, failing.calls + 1):
        failing.calls, failing.fails_at = 0, n
        code, err = quietly("convert", place / "checkpoint", place / "model.safetensors")
        failing.fails_at = 0
        assert (code, err.count("\n")) == (4, 1), err
        assert err.startswith("glmcpu: error: ")
        assert (place / "model.safetensors").read_bytes() in (old, new)
        assert names(place) == ["checkpoint", "model.safetensors"]
        (place / "model.safetensors").write_bytes(old)


def in_small_disk(place: Path, size: str, command: str) -> subprocess.CompletedProcess[str]:
    """Runs `command` in a shell where place/disk is a file system of that size; $GLMCPU is the program."""
    (place / "disk").mkdir()
    mount = f"mount -t tmpfs -o {size} tmpfs {place / 'disk'} || exit 99; {command}"
    if not shutil.which("unshare"):
        pytest.skip("no unshare here to make a file system with")
    environment = {**os.environ, "GLMCPU": f"{sys.executable} -m glmcpu"}
    done = subprocess.run(
        ["unshare", "-rm", "/bin/sh", "-c", mount],  # noqa: S607
        capture_output=True,
        text=True,
        cwd=place,
        env=environment,
        timeout=60,
    )
    if done.returncode in (1, 99) and "glmcpu" not in done.stderr:
        pytest.skip(f"no right to mount a file system here: {done.stderr.strip()}")
    return done


@LINUX
@pytest.mark.parametrize(
    ("size", "prepare", "words"),
    [
        ("size=64k", ":", "no space for new.safetensors: 0 MB needed"),
        ("size=8m,nr_inodes=2", ":", "no space left to write it"),
        ("size=8m", "mount -o remount,ro tmpfs disk", "Read-only file system; choose another place"),
    ],
    ids=["full", "no-inodes", "read-only"],
)
def test_disk_that_takes_no_file_is_one_line(size: str, prepare: str, words: str, place: Path) -> None:
    done = in_small_disk(
        place, size, f"{prepare}; $GLMCPU convert checkpoint disk/new.safetensors; code=$?; ls -A disk; exit $code"
    )
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith("glmcpu: error: disk") or done.stderr.startswith(f"glmcpu: error: {place}")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


@LINUX
def test_disk_that_fills_up_while_it_is_written_keeps_the_old_file(place: Path) -> None:
    code = (
        "import shutil, sys; from glmcpu import cli;"
        "shutil.disk_usage = lambda _: shutil._ntuple_diskusage(0, 0, 1 << 40);"
        "sys.exit(cli.main(['convert', 'checkpoint', 'disk/model.safetensors', '-w', 'f32']))"
    )
    done = in_small_disk(
        place,
        "size=420k",
        f'cp model.safetensors disk; {sys.executable} -c "{code}"; code=$?; ls -A disk; '
        "cmp model.safetensors disk/model.safetensors || exit 98; exit $code",
    )
    assert (done.returncode, done.stdout) == (4, "model.safetensors\n")
    assert done.stderr.count("\n") == 1
    assert "no space left to write it" in done.stderr


@LINUX
def test_too_little_address_space_for_the_file_is_one_line(place: Path) -> None:
    """A sparse file of 8 GB behind a sound header: only its size counts."""
    import resource

    contents = packed.Contents("chatglm", "f16", {}, {}, {}, {"a": "00000000"})
    header = packed.header_bytes(contents, {"a": Entry("U8", (8 << 30,), 0, 8 << 30)})
    with (place / "huge.safetensors").open("wb") as file:
        file.write(header)
        file.truncate(len(header) + (8 << 30))
    limit = (resource.RLIMIT_AS, (4 << 30, 4 << 30))
    code, _, err = run("info", place / "huge.safetensors", preexec_fn=lambda: resource.setrlimit(*limit))
    assert (code, err.count("\n")) == (4, 1)
    assert "huge.safetensors: 8,589,9" in err
    assert "cannot be mapped" in err


@POSIX
def test_deleted_working_folder_is_one_line(place: Path) -> None:
    line = (
        f'mkdir gone; cd gone; rmdir ../gone; "{sys.executable}" -m glmcpu convert "{place}/checkpoint" new.safetensors'
    )
    done = subprocess.run(["/bin/sh", "-c", line], capture_output=True, text=True, cwd=place, timeout=60)
    assert done.returncode == 4
    assert done.stderr == "glmcpu: error: the working folder was deleted; change to one that exists and run again\n"


ENVIRONMENTS: dict[str, tuple[dict[str, str], list[str], int, str]] = {
    "no home": ({"GLMCPU_HOME": "~nobody-of-this-name"}, ["ls"], 2, "set GLMCPU_HOME"),
    "home is a file": ({"GLMCPU_HOME": __file__}, ["convert", "checkpoint"], 4, "cannot be written"),
    "unknown isa": ({"GLMCPU_ISA": "../x"}, ["info"], 2, "GLMCPU_ISA=../x"),
    "unknown threading layer": ({"NUMBA_THREADING_LAYER": "x\ny"}, ["info"], 2, "unset NUMBA_THREADING_LAYER"),
    "hub that is none": ({"HF_ENDPOINT": "ftp://x"}, ["convert", "a/b"], 2, "HF_ENDPOINT"),
}


@pytest.mark.parametrize("row", ENVIRONMENTS)
def test_garbage_in_the_environment_is_one_line(row: str, place: Path) -> None:
    env, arguments, expected, words = ENVIRONMENTS[row]
    code, out, err = run(*arguments, env=env, cwd=place)
    assert (code, out) == (expected, "")
    assert err.count("\n") == 1
    assert err.startswith("glmcpu: error: ")
    assert words in err


def test_refusals_do_not_depend_on_assertions(place: Path) -> None:
    (place / "checkpoint" / "pytorch_model.bin").write_bytes(b"")
    code, out, err = run("convert", place / "checkpoint", python=["-OO"])
    assert (code, out) == (3, "")
    assert err.endswith("pytorch_model.bin: is empty; download it again\n")
