"""Damaged, hostile and unfit checkpoints: one sentence each, nothing executed, nothing left behind."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import golden
import pytest

from glmcpu.convert import convert
from glmcpu.errors import DataError

BAD = (
    "empty-file",
    "evil-legacy-os-system",
    "evil-raw-pickle",
    "evil-zip-eval",
    "evil-zip-os-system",
    "heads-do-not-divide",
    "index-ghost-extra",
    "index-ghost-required",
    "index-path-traversal",
    "missing-shard",
    "missing-tensor",
    "nan-weights",
    "not-a-dict",
    "safetensors-header-too-long",
    "safetensors-offset-out-of-file",
    "storage-too-short",
    "truncated-zip",
    "vocab-mismatch",
    "wrong-shape",
)
# What the sentence must name beside the folder.
NAMES = {
    "index-ghost-extra": ("phantom", "pytorch_model-00003-of-00004.bin"),
    "missing-shard": ("pytorch_model-00004-of-00004.bin",),
    "wrong-shape": ("transformer.layers.0.mlp.dense_h_to_4h.weight", "[128, 31]", "[128, 32]"),
    "nan-weights": ("transformer.layers.1.attention.dense.weight", "nan", "row 0, column 0"),
    "index-ghost-required": ("transformer.final_layernorm.bias",),
    "missing-tensor": ("transformer.layers.0.input_layernorm.weight",),
    "vocab-mismatch": ("transformer.word_embeddings.weight", "[320, 32]"),
    "heads-do-not-divide": ("config.json", "heads", "32 channels"),
    "safetensors-header-too-long": ("1,099,511,627,776",),
    "storage-too-short": ("pytorch_model.bin",),
}
MARKER = Path("/tmp/pwned_marker")  # what the evil checkpoints would make


@pytest.mark.parametrize("earlier", [False, True], ids=["", "earlier-file"])
@pytest.mark.parametrize("name", BAD)
def test_bad_checkpoint_is_one_sentence_and_leaves_what_was_there(name: str, earlier: bool, tmp_path: Path) -> None:
    folder, target = golden.path(f"bad/{name}"), tmp_path / "model.safetensors"
    if earlier:
        shutil.copyfile(golden.packed("tiny-mini", "int8"), target)
    before = golden.listing(tmp_path)
    with pytest.raises(DataError) as error:
        convert(folder, target, weights="f16")
    message = str(error.value)
    assert "\n" not in message
    assert name in message
    assert golden.listing(tmp_path) == before
    for fact in NAMES.get(name, ()):
        assert fact in message
    assert not MARKER.exists()


def test_every_bad_checkpoint_of_the_goldens_is_listed_here() -> None:
    expected = json.loads(golden.path("bad/expected.json").read_text())
    assert set(BAD) == set(expected)


def test_checks_do_not_depend_on_assertions(tmp_path: Path) -> None:
    """python -O removes every assert."""
    bad = golden.path("bad")
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from glmcpu.convert import convert\n"
        "from glmcpu.errors import DataError\n"
        "bad, target, *names = sys.argv[1:]\n"
        "for name in names:\n"
        "    try:\n"
        "        convert(Path(bad, name), target, weights='f32')\n"
        "        print('converted', name)\n"
        "    except DataError as error:\n"
        "        print('refused' if name in str(error) else 'unnamed', name)\n"
    )
    command = [sys.executable, "-O", "-c", code, str(bad), str(tmp_path / "out.safetensors"), *BAD]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    expected = [f"refused {name}" for name in BAD]
    assert done.stdout.splitlines() == expected
    assert not MARKER.exists()
