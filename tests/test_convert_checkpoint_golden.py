"""The golden checkpoints: every sound one is read alike, every bad one is refused and runs nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
from checkpoint_reading import refusal, values
from safetensors.numpy import load_file

from glmcpu.convert.checkpoint import open_checkpoint

GOLDEN = Path(__file__).parents[1].parent / "shared" / "golden" / "visible"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden checkpoints (../shared/golden) are not here")
CANARY = Path("/tmp/pwned_marker")


@needs_golden
def test_golden_safetensors_equal_what_the_library_reads() -> None:
    theirs = load_file(GOLDEN / "tiny-safetensors" / "model.safetensors")
    ours = values(GOLDEN / "tiny-safetensors")
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name].astype("f4"), strict=True)


@needs_golden
@pytest.mark.parametrize(
    "folder",
    [
        "tiny-mini",
        "tiny-legacy-pickle",
        "tiny-legacy-ordereddict",
        "tiny-zip-ordereddict",
        "tiny-zip-float32",
        "tiny-strided",
        "tiny-shared-storage",
        "tiny-no-lm-head",
        "tiny-wrong-inv-freq",
    ],
)
def test_golden_formats_hold_the_same_tensors(folder: str) -> None:
    expected, found = values(GOLDEN / "tiny-safetensors"), values(GOLDEN / folder)
    absent = {"lm_head.weight"} if folder == "tiny-no-lm-head" else set()
    assert found.keys() == expected.keys() - absent
    for name, value in found.items():
        if folder != "tiny-wrong-inv-freq" or not name.endswith("inv_freq"):
            np.testing.assert_array_equal(value, expected[name], strict=True)


@needs_golden
def test_every_golden_checkpoint_opens_and_its_slabs_are_its_values() -> None:
    folders = [path.parent for path in GOLDEN.rglob("config.json") if "bad" not in path.parts]
    assert len(folders) > 20
    for folder in folders:
        with open_checkpoint(folder) as checkpoint:
            for name, info in checkpoint.tensors.items():
                value = checkpoint.read(name)
                assert value.shape == info.shape
                assert value.dtype == (np.int8 if info.dtype == "i8" else np.float32)
                rows = max(1, info.shape[0] // 3)
                found = np.concatenate([slab.copy() for slab in checkpoint.slabs(name, rows)])
                np.testing.assert_array_equal(found, value, strict=True)


SOUND_FILES = {"heads-do-not-divide", "index-ghost-extra", "index-ghost-required", "missing-tensor"} | {
    "nan-weights",
    "vocab-mismatch",
    "wrong-shape",
}
"""Bad models in good files: the converter refuses them, not the reader."""


@needs_golden
@pytest.mark.parametrize(
    "name", sorted(json.loads((GOLDEN / "bad" / "expected.json").read_text())) if GOLDEN.is_dir() else ["none"]
)
def test_bad_golden_gives_one_line_and_runs_nothing(name: str) -> None:
    folder = GOLDEN / "bad" / name
    if name in SOUND_FILES:
        values(folder)
    else:
        assert name in refusal(folder)
    assert not CANARY.exists()
