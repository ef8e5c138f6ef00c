"""The official model's answers, and the checkpoints they belong to.

The small ones are in tests/data/golden, all of them in ../shared/golden/visible; a test that needs one which is in
neither skips and says so. A checkpoint is a folder of the official layout with a few golden_<case>.npz beside it.
"""

import atexit
import json
import shutil
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import glmcpu
from glmcpu import backends
from glmcpu.convert import convert
from glmcpu.models.chatglm import ChatGLM, Part
from glmcpu.packed import PackedFile

# The torch backend is an extra.
BACKENDS = [name for name in backends.NAMES if name != "torch" or find_spec("torch")]
SHARED = Path(__file__).parents[1].parent / "shared" / "golden"
ROOTS = (Path(__file__).parent / "data" / "golden", SHARED / "visible")

_MINI = ("gmask", "mask_mid")
_SMALL = ("gmask", "mask_end", "mask_mid", "mask_and_gmask", "early_sop", "two_gmask", "one_plus_two", "empty_plus_two")
# checkpoint -> the cases of one sequence that go with it as it is
FLOAT = {
    "tiny-mini": _MINI,
    "tiny-1d": ("gmask", "mask_end", "mask_mid", "mask_and_gmask"),
    "tiny-small-vocab": (*_SMALL, "long", "over_max"),
    "tiny-untied": ("as_from_pretrained",),
    "tiny-real-vocab": ("text0", "text1", "text2"),
    "tiny-old-vocab": ("text",),
    "tiny-zip-float32": ("gmask",),
}
# the weights of tiny-mini, stored otherwise
SAME_AS_MINI = (
    "tiny-legacy-ordereddict",
    "tiny-legacy-pickle",
    "tiny-no-lm-head",
    "tiny-safetensors",
    "tiny-shared-storage",
    "tiny-strided",
    "tiny-wrong-inv-freq",
    "tiny-zip-float32",
    "tiny-zip-ordereddict",
)
# official quantized checkpoint -> our format of as many bits; each has the case gmask
QUANTIZED = {
    "tiny-int8": "int8",
    "tiny-int8-sharded": "int8",
    "tiny-int4": "int4",
    "tiny-int4-scale32": "int4",
    "tiny-int4-qe": "int4",
}

_converted = tempfile.TemporaryDirectory(prefix="glmcpu-tests-", ignore_cleanup_errors=True)
atexit.register(_converted.cleanup)


def path(name: str) -> Path:
    """A golden file or folder by its name below the goldens; skips the test where it is not."""
    for root in ROOTS:
        if (root / name).exists():
            return root / name
    pytest.skip(f"{name} is neither in tests/data/golden nor in ../shared/golden/visible")


def official_tokenizer() -> Path:
    """ice_text.model, which is not ours to copy."""
    file = SHARED / "ice_text.model"
    if not file.exists():
        pytest.skip("../shared/golden/ice_text.model is not here")
    return file


def case(checkpoint: str, name: str) -> dict[str, NDArray[Any]]:
    """The arrays of one case: ids and what the official model computes from them."""
    with np.load(path(f"{checkpoint}/golden_{name}.npz")) as arrays:
        return dict(arrays)


@cache
def packed(checkpoint: str, weights: str) -> Path:
    """A golden checkpoint converted, once in a test run."""
    target = Path(_converted.name) / f"{checkpoint}-{weights}.safetensors"
    convert(path(checkpoint), target, weights=weights)
    return target


@cache
def model(checkpoint: str, weights: str, backend: str = "cpu", threads: int | None = None) -> glmcpu.Model:
    """A golden checkpoint converted and opened, once in a test run."""
    return glmcpu.Model.load(packed(checkpoint, weights), backend=backend, threads=threads, context=4096)


def chatglm(checkpoint: str, weights: str, backend: str = "cpu") -> ChatGLM:
    """The part of a model that computes: ids to scores."""
    return model(checkpoint, weights, backend).language_model


def read(model: ChatGLM, ids: list[int]) -> NDArray[np.float32]:
    """Scores after each of the ids, read alone and at once."""
    return model.forward([Part(ids, model.new_cache(len(ids)))], every=True)


def listing(folder: Path) -> dict[str, bytes]:
    """Every file's content; an empty lock file may stay on Windows."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and not p.name.endswith("glmcpu-lock")}


def tensors(file: Path) -> dict[str, bytes]:
    """Every tensor of a packed file, by name."""
    opened = PackedFile(file)
    return {name: opened.raw(name).tobytes() for name in opened.tensors()}


@cache
def untied_model(backend: str) -> glmcpu.Model:
    """tiny-untied with a config that says so: the stored lm_head counts."""
    folder = Path(_converted.name) / "untied"
    if not folder.exists():
        shutil.copytree(path("tiny-untied"), folder)
        change_json(folder / "config.json", tie_word_embeddings=False)
    target = convert(folder, folder / "untied.safetensors", weights="f32")
    return glmcpu.Model.load(target, backend=backend)


def change_json(file: Path, **changes: Any) -> None:
    """Sets keys of a JSON object; None removes one."""
    table = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in table.items() if value is not None}))
