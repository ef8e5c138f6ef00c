"""The cache of compiled kernels: what is in it is used, what is damaged or not ours is not."""

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba.core import caching

from glmcpu.simd import isa
from glmcpu.simd import kernel as kernels
from glmcpu.simd.kernel import kernel

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
RUN = (
    "import numpy as np; from glmcpu.kernels import activations as a; from glmcpu.simd.kernel import folder; "
    "from glmcpu.simd.program import Program; p = Program(2); x = np.ones((1, 1 << 17), np.float32); "
    "y = a.scale_add(p, x, 2.0, x.copy()); p.finish(); "
    "print(set(y[0].tolist()), folder() is not None, a._scale_add.cache_hits)"
)


def _double(x):  # type: ignore[no-untyped-def]  # compiled
    return x * 2


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of this test's own; the folder of the session comes back afterwards."""
    place = tmp_path / "cache"
    monkeypatch.setenv("GLMCPU_CACHE", str(place))
    kernels.folder.cache_clear()
    yield place
    kernels.folder.cache_clear()
    kernels._digest.cache_clear()


def _hits_and_result(argument: Any) -> tuple[int, Any]:
    """Decorates anew, as another process would, and calls."""
    compiled = kernel()(_double)
    result = compiled(argument)
    return sum(compiled.stats.cache_hits.values()), result


def _entries(suffix: str) -> list[Path]:
    place = kernels.folder()
    assert place is not None
    return sorted(place.glob(f"*{suffix}"))


def test_compiled_code_is_kept_and_used_again() -> None:
    here = Path(__file__).stem
    assert not kernels.compiled_before(here)
    assert _hits_and_result(3) == (0, 6)
    assert kernels.compiled_before(here)
    assert not kernels.compiled_before(here, "attention")
    assert _hits_and_result(4) == (1, 8)


def test_another_process_uses_it(cache: Path) -> None:
    for hits in (0, 1):
        done = subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True, timeout=120, check=True)
        assert done.stdout.split() == ["{3.0}", "True", str(hits)]
    assert cache.is_dir()


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
def test_a_truncated_entry_costs_a_recompile_and_is_replaced(suffix: str) -> None:
    _hits_and_result(3)
    (entry,) = _entries(suffix)
    whole = entry.read_bytes()
    for size in sorted({0, 1, 2, 3, 7, 12, len(whole) // 3, len(whole) // 2, len(whole) - 1}):
        entry.write_bytes(whole[:size])
        assert _hits_and_result(3) == (0, 6)
        assert _hits_and_result(3) == (1, 6)


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00" * 4096,
        np.random.default_rng(0).bytes(999),
        b"version https://git-lfs",
        pickle.dumps(3),
        pickle.dumps(("a", {})) * 2,
    ],
    ids=["zeros", "noise", "text", "number", "other pickle"],
)
def test_garbage_costs_a_recompile_and_is_replaced(suffix: str, garbage: bytes) -> None:
    _hits_and_result(3)
    (entry,) = _entries(suffix)
    entry.write_bytes(garbage)
    assert _hits_and_result(3) == (0, 6)
    assert _hits_and_result(3) == (1, 6)


def test_a_missing_half_of_an_entry_costs_a_recompile() -> None:
    for suffix in (".nbi", ".nbc"):
        _hits_and_result(3)
        _entries(suffix)[0].unlink()
        assert _hits_and_result(3) == (0, 6)


def test_code_for_other_types_behind_an_entry_is_not_run() -> None:
    whole, single = np.arange(3), np.arange(3, dtype=np.float32)
    compiled = kernel()(_double)
    compiled(whole)
    compiled(single)
    first, second = _entries(".nbc")
    first_bytes = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(first_bytes)
    for argument in (whole, single):
        hits, result = _hits_and_result(argument)
        assert hits == 0
        assert np.array_equal(result, argument * 2)
        assert result.dtype == argument.dtype


@pytest.mark.parametrize("at", ["_save_index", "_save_data"])
def test_a_full_disk_does_not_stop_the_computation(at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(caching.IndexDataCacheFile, at, full)
    assert _hits_and_result(3) == (0, 6)


class _Hostile:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.canary),)


@posix
@pytest.mark.parametrize("where", ["the folder", "its parent"])
@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_folder_others_can_write_is_not_read(where: str, mode: int, cache: Path, tmp_path: Path) -> None:
    _hits_and_result(3)
    place, canary = kernels.folder(), tmp_path / "canary"
    assert place is not None
    for entry in (*place.glob("*.nbi"), *place.glob("*.nbc")):
        entry.write_bytes(pickle.dumps(_Hostile(canary)))
    (place if where == "the folder" else place.parent).chmod(mode)
    kernels.folder.cache_clear()
    assert kernels.folder() is None
    assert not kernels.compiled_before("test_simd_kernel")
    assert _hits_and_result(3) == (0, 6)
    assert not canary.exists()


@posix
def test_a_link_in_place_of_the_folder_is_not_followed(cache: Path, tmp_path: Path) -> None:
    place = kernels.folder()
    assert place is not None
    shutil.move(place, tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    kernels.folder.cache_clear()
    assert kernels.folder() is None


@posix
def test_a_folder_of_somebody_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    assert kernels.folder() is None
    assert _hits_and_result(3) == (0, 6)


@posix
def test_the_folder_is_private_whatever_the_umask() -> None:
    before = os.umask(0o002)
    try:
        place = kernels.folder()
    finally:
        os.umask(before)
    assert place is not None
    assert place.stat().st_mode & 0o777 == place.parent.stat().st_mode & 0o777 == 0o700


def test_where_no_folder_can_be_made_kernels_run_uncached(tmp_path: Path) -> None:
    blocked = tmp_path / "a file"
    blocked.write_bytes(b"")
    environment = {**os.environ, "GLMCPU_CACHE": str(blocked / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", RUN], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split() == ["{3.0}", "False", "0"]
    assert done.stderr == ""


def test_a_user_without_a_home_runs_uncached(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("GLMCPU_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert kernels.folder() is None


@pytest.mark.parametrize(
    ("platform", "variable", "expected"),
    [
        ("linux", "XDG_CACHE_HOME", "own/glmcpu"),
        ("linux", None, "me/.cache/glmcpu"),
        ("darwin", None, "me/Library/Caches/glmcpu"),
        ("win32", "LOCALAPPDATA", "own/glmcpu/cache"),
        ("win32", None, "me/AppData/Local/glmcpu/cache"),
    ],
)
def test_the_cache_is_in_the_platforms_cache_folder(
    platform: str, variable: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GLMCPU_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, str(tmp_path / "own"))
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "me")
    assert kernels._cache_root() == tmp_path / expected


@pytest.mark.parametrize("changed", ["simd/vector.py", "kernels/norms.py", "formats/_blocks.py"])
def test_a_changed_source_makes_another_folder(changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = kernels.folder()
    package = tmp_path / "glmcpu"
    for name in ("simd", "kernels", "formats"):
        shutil.copytree(Path(kernels.__file__).parents[1] / name, package / name)
    monkeypatch.setattr(kernels, "__file__", str(package / "simd" / "kernel.py"))
    for change in (False, True):
        if change:
            (package / changed).write_bytes((package / changed).read_bytes() + b"\n")
        kernels._digest.cache_clear()
        kernels.folder.cache_clear()
        assert (kernels.folder() != before) == change


def test_another_isa_makes_another_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    before = kernels.folder()
    monkeypatch.setattr(isa, "name", "other")
    kernels._digest.cache_clear()
    kernels.folder.cache_clear()
    after = kernels.folder()
    assert after is not None
    assert after != before
    assert after.name.startswith("other-")
