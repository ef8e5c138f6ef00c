"""The error of each matrix against its definition, and what may be compared."""

from pathlib import Path

import golden
import numpy as np
import pytest
from tiny_talkers import examples, loaded, talker
from tiny_tokenizer import tiny_tokenizer

from glmcpu import backends, formats, layer_errors, texts
from glmcpu.errors import DataError
from glmcpu.model import read_config
from glmcpu.models.chatglm import Part
from glmcpu.packed import PackedFile

L = 2
NAMES = [
    "embedding",
    *(f"layers.{n}.{name}" for n in range(L) for name in ("qkv", "attention_out", "mlp_up", "mlp_down")),
    "lm_head",
]


def sequences(folder: Path, n: int = 12) -> list[texts.Sequence]:
    return list(texts.sequences(examples(folder, n), tiny_tokenizer()))


def errors(folder: Path, *weights: str) -> list[dict[str, float]]:
    return layer_errors.layer_errors(talker("f32"), [talker(name) for name in weights], sequences(folder))


def test_every_matrix_has_an_error_and_fewer_bits_a_larger_one(tmp_path: Path) -> None:
    same, half, eight, four = errors(tmp_path, "f32", "f16", "int8", "int4")
    assert list(same) == NAMES
    assert set(same.values()) == set(half.values()) == {0.0}  # the checkpoint is in half precision
    assert all(0 < eight[name] < four[name] / 50 for name in NAMES)


def test_an_error_is_the_change_of_the_products_over_the_products(tmp_path: Path) -> None:
    """Of the first layer's qkv and the embedding, whose inputs are easily had."""
    (found,) = errors(tmp_path, "int4")
    exact, other = PackedFile(talker("f32")), PackedFile(talker("int4"))
    config = loaded("f32").config
    group, seen = [], 0
    for sequence in sequences(tmp_path):
        if seen < 256:
            group.append(sequence)
            seen += len(sequence.ids)
    shape = (config.vocabulary, config.channels)
    ids = np.concatenate([s.ids for s in group])
    rows, others = (formats.rows(file.weight("embedding", *shape), ids) for file in (exact, other))
    assert found["embedding"] == pytest.approx(np.square(others - rows).sum() / np.square(rows).sum(), rel=1e-4)
    scale, shift = (exact.vector(f"layers.0.attention_norm.{name}", config.channels) for name in ("scale", "shift"))
    x = backends.load("reference").layer_norm(rows, scale, shift, config.epsilon)[:: max(1, len(rows) // 256)]
    w, v = (formats.unpack(file.weight("layers.0.qkv", 3 * shape[1], shape[1])) for file in (exact, other))
    expected = np.square(x @ (v - w).T).sum() / np.square(x @ w.T).sum()
    assert found["layers.0.qkv"] == pytest.approx(expected, rel=1e-4)


def test_slabs_of_rows_change_nothing_and_an_untied_head_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = errors(tmp_path, "int4")[0]
    monkeypatch.setattr(layer_errors, "_SLAB_WEIGHTS", 1)
    slabs = errors(tmp_path, "int4")[0]
    assert {name: pytest.approx(error, rel=1e-5) for name, error in whole.items()} == slabs
    untied = golden.untied_model("cpu").path
    ids = golden.case("tiny-untied", "as_from_pretrained")["input_ids"][0].tolist()
    begin = ids.index(loaded_config(untied).bos) + 1
    (found,) = layer_errors.layer_errors(untied, [untied], [texts.Sequence([*ids[:begin], 5, 6], begin, "here")])
    assert list(found)[-1] == "lm_head"
    assert set(found.values()) == {0.0}


def loaded_config(path: Path):  # type: ignore[no-untyped-def]
    return read_config(PackedFile(path))[1]


def test_watching_changes_no_result(tmp_path: Path) -> None:
    packed = PackedFile(talker("int8"))
    generation, config = read_config(packed)
    meter = layer_errors._Meter([], 1, None)
    model = generation.build(config, packed, layer_errors._Watching(meter, None))
    for sequence in sequences(tmp_path)[:3]:
        part = Part(sequence.ids, model.new_cache(len(sequence.ids)))
        found = model.forward([part], every=True, after_layer=lambda n, x: None)
        np.testing.assert_array_equal(found, loaded("int8").logits(sequence.ids))


def test_progress_ends_with_all_weights(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    words = sequences(tmp_path)
    layer_errors.layer_errors(talker("f32"), [talker("int8")], words, progress=lambda *state: seen.append(state))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]


def test_models_of_other_shapes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tiny-mini-f32\.safetensors: has other matrices than .*talker-f32"):
        layer_errors.layer_errors(talker("f32"), [golden.packed("tiny-mini", "f32")], sequences(tmp_path))
