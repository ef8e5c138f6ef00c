"""What is done of a calibration is kept whole or not at all, by one run at a time, and goes when it is over."""

import contextlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from glmcpu import formats
from glmcpu.convert import work_folder
from glmcpu.errors import DataError, MachineError, Notice

LAYERS, SHAPE = 3, (5, 4)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def residual(n: int) -> NDArray[np.float32]:
    return np.full(SHAPE, n, np.float32)


def stopped_after(target: Path, layers: int, key: str = "one") -> Path:
    """The folder of a run that ended after so many layers."""
    with contextlib.suppress(KeyboardInterrupt), work_folder.opened(target, key, LAYERS, SHAPE) as folder:
        for n in range(layers):
            folder.keep(f"layers.{n}.qkv", {})
            folder.finish_layer(n + 1, residual(n + 1))
        raise KeyboardInterrupt
    return folder.path


@pytest.mark.parametrize("weights", formats.names())
def test_arrays_come_back_as_they_were_kept(weights: str, target: Path) -> None:
    form, O, I = formats.load(weights), 35, 40
    arrays = form.pack(np.random.default_rng(0).standard_normal((O, I)).astype(np.float32))
    with work_folder.opened(target, "key", LAYERS, SHAPE) as folder:
        folder.keep("layers.0.qkv", arrays)
        found = folder.arrays("layers.0.qkv", weights, O, I)
    assert found.keys() == arrays.keys()
    for key, array in arrays.items():
        np.testing.assert_array_equal(found[key].view(np.uint8), np.ascontiguousarray(array).view(np.uint8))


def test_folder_goes_when_all_ends_well(target: Path) -> None:
    with work_folder.opened(target, "key", LAYERS, SHAPE) as folder:
        folder.keep("layers.0.qkv", {})
        folder.finish_layer(1, residual(1))
        assert folder.path.is_dir()
    assert not list(target.parent.iterdir())


def test_next_run_goes_on_with_the_last_residual_and_earlier_ones_are_gone(target: Path) -> None:
    path = stopped_after(target, 2)
    assert sorted(p.name for p in path.iterdir() if p.name.startswith("residual")) == ["residual-2"]
    with contextlib.ExitStack() as stack:
        with pytest.warns(Notice, match="after layer 2 of 3"):
            folder = stack.enter_context(work_folder.opened(target, "one", LAYERS, SHAPE))
        assert folder.done == 2
        np.testing.assert_array_equal(folder.residual(), residual(2))


def test_run_without_a_whole_layer_begins_again_in_silence(target: Path) -> None:
    stopped_after(target, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with work_folder.opened(target, "one", LAYERS, SHAPE) as folder:
            assert folder.done == 0


def test_another_key_empties_the_folder(target: Path) -> None:
    stopped_after(target, 2)
    with contextlib.ExitStack() as stack:
        with pytest.warns(Notice, match="another calibration"):
            folder = stack.enter_context(work_folder.opened(target, "two", LAYERS, SHAPE))
        assert folder.done == 0
        assert {p.name for p in folder.path.iterdir() if not p.name.startswith(".")} <= {"key", "running"}


@pytest.mark.parametrize("content", [b"", b"\0" * 79, b"\0" * 81])
def test_residual_of_another_size_does_not_count(content: bytes, target: Path) -> None:
    path = stopped_after(target, 1)
    (path / "residual-1").write_bytes(content)
    with work_folder.opened(target, "one", LAYERS, SHAPE) as folder:
        assert folder.done == 0


@pytest.mark.parametrize("name", ["residual-4", "residual-01x", "residual--1", "residual-9999999"])
def test_residual_of_no_layer_does_not_count(name: str, target: Path) -> None:
    path = stopped_after(target, 0)
    (path / name).write_bytes(residual(1).tobytes())
    with work_folder.opened(target, "one", LAYERS, SHAPE) as folder:
        assert folder.done == 0


def test_matrix_that_is_cut_off_or_gone_is_named(target: Path) -> None:
    form = formats.load("int8")
    arrays: dict[str, Any] = form.pack(np.ones((16, 32), np.float32))
    with work_folder.opened(target, "key", LAYERS, SHAPE) as folder:
        folder.keep("embedding", arrays)
        (folder.path / "embedding").write_bytes((folder.path / "embedding").read_bytes()[:-1])
        with pytest.raises(DataError, match="cut off"):
            folder.arrays("embedding", "int8", 16, 32)
        with pytest.raises(DataError, match="lm_head"):
            folder.arrays("lm_head", "int8", 16, 32)


def test_two_runs_do_not_share_a_folder(target: Path) -> None:
    with (
        work_folder.opened(target, "one", LAYERS, SHAPE),
        pytest.raises(MachineError, match="another glmcpu"),
        work_folder.opened(target, "two", LAYERS, SHAPE),
    ):
        raise AssertionError("it was opened twice")
