"""Random models of a published shape: real packed files that leave nothing behind."""

import os
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_random import CHATGLM, TINY, quiet, tiny_chatglm_6b

import glmcpu
from glmcpu import files, formats, model, models, random_weights, store
from glmcpu.errors import MachineError
from glmcpu.packed import PackedFile

__all__ = ["tiny_chatglm_6b"]


def test_chatglm_6b_has_the_published_number_of_parameters() -> None:
    generation, fields = random_weights.PUBLISHED["chatglm-6b"]
    config = models.load(generation).Config(**fields)
    matrices = sum(O * I for O, I in CHATGLM.matrices(config).values())
    assert matrices + sum(CHATGLM.vectors(config).values()) == 6_173_286_400


@pytest.mark.parametrize("weights", formats.names())
@pytest.mark.parametrize("tied", [True, False])
def test_a_random_model_passes_verification_and_computes_finite_scores(
    weights: str, tied: bool, tmp_path: Path
) -> None:
    target, config = tmp_path / "m.safetensors", CHATGLM.Config(**{**TINY, "tied": tied})
    random_weights.write(target, "chatglm", config, weights, quiet)
    model.verify(target)
    scores = glmcpu.Model.load(target).logits([1, 2, 3, config.gmask, config.bos])
    assert np.isfinite(scores).all()
    assert scores.std() > 0.01


def test_weights_have_the_spread_of_a_trained_model(tmp_path: Path) -> None:
    target, config = tmp_path / "m.safetensors", CHATGLM.Config(**TINY)
    random_weights.write(target, "chatglm", config, "f32", quiet)
    weight = formats.unpack(PackedFile(target).weight("layers.1.mlp_down", 72, 101))
    assert weight.std() == pytest.approx(0.02, rel=0.05)


def test_progress_ends_with_all_bytes(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    config = CHATGLM.Config(**TINY)
    random_weights.write(tmp_path / "m.safetensors", "chatglm", config, "int8", lambda *p: seen.append(p))
    assert seen[-1][1] == seen[-1][2]
    assert [p[1] for p in seen] == sorted(p[1] for p in seen)


@pytest.mark.usefixtures("tiny_chatglm_6b")
def test_a_temporary_model_is_no_model_of_the_folder_and_goes_with_its_block() -> None:
    with random_weights.temporary_model("chatglm-6b", "int4", quiet) as (path, _):
        assert path.is_file()
        assert store.models() == []
    assert not list(store.home().glob(".bench*safetensors"))


@pytest.mark.usefixtures("tiny_chatglm_6b")
@pytest.mark.skipif(os.name != "posix", reason="Windows keeps a mapped file")
def test_a_forgotten_file_is_gone_and_its_model_still_works() -> None:
    with random_weights.temporary_model("chatglm-6b", "int4", quiet) as (path, forget):
        loaded = glmcpu.Model.load(path)
        forget()
        assert not path.exists()
        assert loaded.logits([1, TINY["gmask"], TINY["bos"]]).shape == (3, TINY["vocabulary"])


@pytest.mark.usefixtures("tiny_chatglm_6b")
def test_an_interruption_leaves_nothing_behind() -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), random_weights.temporary_model("chatglm-6b", "int4", interrupt):
        pass
    with pytest.raises(KeyboardInterrupt), random_weights.temporary_model("chatglm-6b", "int4", quiet):
        raise KeyboardInterrupt
    assert [p for p in store.home().iterdir() if not p.name.endswith("glmcpu-lock")] == []


@pytest.mark.usefixtures("tiny_chatglm_6b")
def test_a_failure_inside_frees_the_model_before_the_file_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[weakref.ref[glmcpu.Model]] = []
    alive: list[object] = []

    def fail(path: Path) -> None:
        loaded = glmcpu.Model.load(path)
        seen.append(weakref.ref(loaded))
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "remove", lambda path: (alive.append(seen[0]()), path.unlink()))
    with pytest.raises(KeyboardInterrupt), random_weights.temporary_model("chatglm-6b", "int4", quiet) as (path, _):
        fail(path)
    assert alive == [None]


def test_a_full_disk_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 0, 9))
    with pytest.raises(MachineError, match=r"no space for random weights in f16: \d+ MB needed, 0 MB free"):
        random_weights.write(tmp_path / "m.safetensors", "chatglm", CHATGLM.Config(**TINY), "f16", quiet)
    assert not list(tmp_path.glob("*.safetensors"))
