"""convert(adapter=...): the same bytes as from a checkpoint whose weights were merged before, or one sentence."""

import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import golden
import numpy as np
import pytest
from numpy.typing import NDArray
from test_convert_calibrate import stopped, write_text
from tiny_adapter import OURS, SHAPES, config, lora_tensors, module, random, write_lora, write_prefix
from tiny_checkpoint import C, L, Tensors, official_tensors, write_checkpoint

from glmcpu import adapters, cli, formats, packed
from glmcpu.convert import convert, merge, writer
from glmcpu.convert.packed_source import open_packed
from glmcpu.errors import DataError, GlmcpuError, Notice, UsageError
from glmcpu.packed import PackedFile

Floats = NDArray[np.float32]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "source")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """LoRA on every matrix of the layers."""
    return write_lora(tmp_path / "mine", lora_tensors(SHAPES))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return tmp_path / "models" / "model.safetensors"


def with_lora(tensors: Tensors, adapter: Path) -> Tensors:
    """The checkpoint's tensors with the adapter in them: float32, the sum over the rank in its order."""
    merged = dict(tensors)
    low_rank = adapters.read(adapter, config()).low_rank
    for n in range(L):
        for part, ours in OURS.items():
            if (pair := low_rank.get(f"layers.{n}.{ours}")) is not None:
                name = f"{module(n, part)}.weight"
                delta = np.zeros((len(pair.up), pair.down.shape[1]), np.float32)
                for r in range(pair.rank):
                    delta += pair.up[:, r, None] * pair.down[r]
                merged[name] = tensors[name].astype(np.float32) + delta
    return merged


def refused(kind: type[GlmcpuError], *arguments: Any, **options: Any) -> str:
    with pytest.raises(kind) as error:
        convert(*arguments, **options)
    assert str(error.value).isprintable()
    return str(error.value)


@pytest.mark.parametrize("weights", formats.names())
def test_result_is_that_of_weights_merged_before(
    weights: str, checkpoint: Path, adapter: Path, target: Path, tmp_path: Path
) -> None:
    before = write_checkpoint(tmp_path / "merged", tensors=with_lora(official_tensors(), adapter))
    expected = golden.tensors(convert(before, tmp_path / "merged.safetensors", weights=weights))
    assert golden.tensors(convert(checkpoint, target, weights=weights, adapter=adapter)) == expected
    assert packed.verify(target).contents.weights == weights
    assert golden.tensors(convert(checkpoint, target, weights=weights)) != expected


def test_merged_weights_are_the_sum_of_weight_and_adapter(checkpoint: Path, adapter: Path, target: Path) -> None:
    file = PackedFile(convert(checkpoint, target, weights="f32", adapter=adapter))
    low_rank = adapters.read(adapter, config()).low_rank
    for n in range(L):
        for part, ours in OURS.items():
            weight, pair = official_tensors()[f"{module(n, part)}.weight"], low_rank[f"layers.{n}.{ours}"]
            found = formats.unpack(file.weight(f"layers.{n}.{ours}", *weight.shape))
            np.testing.assert_allclose(found, weight + pair.up @ pair.down, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 16, 48])
def test_size_of_the_slabs_does_not_change_a_byte(
    rows: int, checkpoint: Path, adapter: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = convert(checkpoint, target, adapter=adapter).read_bytes()
    monkeypatch.setattr(writer, "_SLAB_BYTES", rows * 4 * C)
    monkeypatch.setattr(merge, "_BLOCK_BYTES", 5 * 4 * C)
    assert convert(checkpoint, target, adapter=adapter).read_bytes() == whole


def test_stored_weights_are_not_changed_in_place(checkpoint: Path, adapter: Path, target: Path) -> None:
    """A slab of float32 is the reader's own memory."""
    tensors = {name: array.astype(np.float32) for name, array in official_tensors().items()}
    exact = write_checkpoint(checkpoint.parent / "exact", tensors=tensors)
    first = golden.tensors(convert(exact, target, weights="f32", adapter=adapter))
    half = golden.tensors(convert(checkpoint, target, weights="f32", adapter=adapter))
    assert first == half


def test_matrices_without_lora_stay_as_they_are(checkpoint: Path, target: Path, tmp_path: Path) -> None:
    plain = golden.tensors(convert(checkpoint, tmp_path / "plain.safetensors"))
    adapter = write_lora(tmp_path / "mine", lora_tensors(["attention.dense"]))
    merged = golden.tensors(convert(checkpoint, target, adapter=adapter))
    changed = {name for name, data in merged.items() if data != plain[name]}
    assert {name.rpartition(".")[0] for name in changed} == {f"layers.{n}.attention_out" for n in range(L)}


def test_fused_matrix_of_peft_0_2_is_merged(checkpoint: Path, target: Path, tmp_path: Path) -> None:
    tensors: Tensors = {}
    for n in range(L):
        a, b = random(8, C, seed=n), random(2 * C, 4, 1, seed=n)
        tensors |= {f"{module(n)}.lora_A.weight": a, f"{module(n)}.lora_B.weight": b}
    adapter = write_lora(tmp_path / "mine", tensors, enable_lora=[True, False, True])
    merged = PackedFile(convert(checkpoint, target, weights="f32", adapter=adapter))
    found = formats.unpack(merged.weight("layers.1.qkv", 3 * C, C)) - official_tensors()[f"{module(1)}.weight"]
    a, b = tensors[f"{module(1)}.lora_A.weight"], tensors[f"{module(1)}.lora_B.weight"][..., 0]
    expected = np.concatenate([b[:C] @ a[:4], np.zeros((C, C)), b[C:] @ a[4:]])
    np.testing.assert_allclose(found, 8 * expected, rtol=1e-3, atol=1e-3)


# --- other sources ---


def quantized(bits: int) -> Tensors:
    """The checkpoint's linear weights as the official code keeps them."""
    tensors: Tensors = {}
    for name, array in official_tensors().items():
        tensors[name] = array
        if ".layers." in name and array.ndim == 2:
            top = 2 ** (bits - 1) - 1
            scale = (np.abs(array).max(axis=1) / top).astype(np.float16)
            codes = np.clip(np.rint(array / scale[:, None]), -top, top).astype(np.int8)
            tensors[name] = codes if bits == 8 else ((codes[:, ::2] << 4) | (codes[:, 1::2] & 15)).astype(np.int8)
            tensors[f"{name}_scale"] = scale
    return tensors


def dequantized(tensors: Tensors, bits: int) -> Tensors:
    floats: Tensors = {name: array for name, array in tensors.items() if not name.endswith("_scale")}
    for name, array in tensors.items():
        if f"{name}_scale" in tensors:
            codes = array if bits == 8 else np.stack([array >> 4, (array << 4) >> 4], axis=2).reshape(len(array), -1)
            floats[name] = codes.astype(np.float32) * tensors[f"{name}_scale"].astype(np.float32)[:, None]
    return floats


@pytest.mark.parametrize("weights", ["f32", "int8", "int4", "int4_g32"])
@pytest.mark.parametrize("bits", [4, 8])
def test_official_quantized_checkpoint_is_merged_and_rounded_anew(
    bits: int, weights: str, adapter: Path, target: Path, tmp_path: Path
) -> None:
    tensors = quantized(bits)
    source = write_checkpoint(tmp_path / "quantized", tensors=tensors, quantization_bit=bits)
    floats = with_lora(dequantized(tensors, bits), adapter)
    before = convert(write_checkpoint(tmp_path / "f", tensors=floats), tmp_path / "f.safetensors", weights=weights)
    expected, found = golden.tensors(before), golden.tensors(convert(source, target, weights=weights, adapter=adapter))
    layers = {name for name in expected if name.startswith("layers.")}
    assert layers
    assert {name: found[name] for name in layers} == {name: expected[name] for name in layers}


def test_matrices_without_lora_keep_their_official_codes(target: Path, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "quantized", tensors=quantized(4), quantization_bit=4)
    plain = golden.tensors(convert(source, tmp_path / "plain.safetensors", weights="int4"))
    merged = golden.tensors(convert(source, target, weights="int4", adapter=write_lora(tmp_path / "mine")))
    assert {name.split(".")[2] for name in merged if merged[name] != plain[name]} == {"qkv"}


@pytest.mark.parametrize("kept", ["f16", "f32"])
def test_packed_model_takes_it_as_its_checkpoint_does(
    kept: str, checkpoint: Path, adapter: Path, target: Path, tmp_path: Path
) -> None:
    direct = golden.tensors(convert(checkpoint, target, adapter=adapter))
    exact = convert(checkpoint, tmp_path / "exact.safetensors", weights=kept)
    assert golden.tensors(convert(exact, target, adapter=adapter)) == direct


# --- calibration ---


def test_calibration_and_mixtures_see_the_merged_weights(
    checkpoint: Path, adapter: Path, target: Path, tmp_path: Path
) -> None:
    text = write_text(tmp_path / "text.jsonl", 16, seed=0)
    before = write_checkpoint(tmp_path / "merged", tensors=with_lora(official_tensors(), adapter))
    tried: list[dict[str, Any]] = [{"calibrate": text}, {"bits": 5.0, "calibrate": text}]
    for options in tried:
        expected = golden.tensors(convert(before, tmp_path / "merged.safetensors", **options))
        assert golden.tensors(convert(checkpoint, target, adapter=adapter, **options)) == expected


def test_interrupted_calibration_goes_on_only_with_the_same_adapter(
    checkpoint: Path, adapter: Path, target: Path, tmp_path: Path
) -> None:
    text = write_text(tmp_path / "text.jsonl", 16, seed=0)
    whole = convert(checkpoint, tmp_path / "whole.safetensors", calibrate=text, adapter=adapter).read_bytes()
    stopped(checkpoint, target, text, "layer 2 of 2", adapter=adapter)
    with pytest.warns(Notice, match="goes on after layer 1"):
        convert(checkpoint, target, calibrate=text, adapter=adapter)
    assert target.read_bytes() == whole
    other: list[dict[str, Any]] = [{}, {"adapter": write_lora(tmp_path / "x" / "mine")}]
    other.append({"adapter": adapter, "lora_alpha": 16})
    for options in other:
        stopped(checkpoint, target, text, "layer 2 of 2", adapter=adapter)
        with warnings.catch_warnings(record=True) as notices:
            warnings.simplefilter("always")
            convert(checkpoint, target, calibrate=text, **options)
        assert any("another calibration" in str(notice.message) for notice in notices)


# --- what is said and recorded ---


def test_adapter_is_recorded_with_sizes_and_digests(checkpoint: Path, adapter: Path, target: Path) -> None:
    source = PackedFile(convert(checkpoint, target, adapter=adapter)).contents.source
    (record,) = source["adapters"]
    assert (record["name"], record["about"]) == ("mine", "LoRA: rank 4 on 8 matrices")
    assert set(record["files"]) == {"adapter_model.bin", "adapter_config.json"}
    for name, facts in record["files"].items():
        assert facts["size"] == (adapter / name).stat().st_size
        assert len(facts["sha256"]) == 64
    assert "lora_alpha" not in record
    assert set(source["files"]) == {"config.json", "pytorch_model.bin"}


def test_adapters_are_recorded_in_order_when_one_follows_another(
    checkpoint: Path, adapter: Path, target: Path, tmp_path: Path
) -> None:
    first = convert(checkpoint, tmp_path / "first.safetensors", weights="f32", adapter=adapter)
    second = write_lora(tmp_path / "second", lora_alpha=None)
    adapters_ = PackedFile(convert(first, target, adapter=second, lora_alpha=8)).contents.source["adapters"]
    assert [(record["name"], record.get("lora_alpha")) for record in adapters_] == [("mine", None), ("second", 8)]
    assert "adapters" not in PackedFile(convert(checkpoint, target)).contents.source


def test_default_name_has_the_adapters(checkpoint: Path, adapter: Path) -> None:
    assert convert(checkpoint).name == "source-int4_g32.safetensors"
    assert convert(checkpoint, adapter=adapter).name == "source-mine-int4_g32.safetensors"
    assert convert(checkpoint, adapter=adapter / "adapter_model.bin").name == "source-mine-int4_g32.safetensors"
    own = shutil.copy(adapter / "adapter_model.bin", adapter / "belle.bin")
    assert convert(checkpoint, adapter=str(own), weights="int8").name == "source-belle-int8.safetensors"


def test_what_was_assumed_is_told(checkpoint: Path, adapter: Path, target: Path) -> None:
    (adapter / "adapter_config.json").unlink()
    with pytest.warns(Notice, match=r"mine: has no adapter_config\.json.* 32"):
        convert(checkpoint, target, adapter=adapter)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert(checkpoint, target, adapter=adapter, lora_alpha=32)


# --- refused ---


def test_prefix_is_no_part_of_a_weight(checkpoint: Path, target: Path, tmp_path: Path) -> None:
    message = refused(UsageError, checkpoint, target, adapter=write_prefix(tmp_path / "prefix"))
    assert "glmcpu chat MODEL --adapter PATH" in message
    assert not list(target.parent.iterdir())


def test_alpha_without_an_adapter_is_refused(checkpoint: Path, target: Path) -> None:
    assert "--adapter PATH" in refused(UsageError, checkpoint, target, lora_alpha=8)


def test_adapter_of_another_model_is_refused(checkpoint: Path, target: Path, tmp_path: Path) -> None:
    adapter = write_lora(tmp_path / "large", {f"{module(0)}.lora_{side}.weight": random(4, 64) for side in "AB"})
    message = refused(DataError, checkpoint, target, adapter=adapter)
    assert "[4, 64]" in message
    assert not list(target.parent.iterdir())


def test_sum_too_large_for_half_precision_is_named(checkpoint: Path, target: Path, tmp_path: Path) -> None:
    tensors = lora_tensors(["attention.dense"])
    tensors["base_model.model.transformer.layers.1.attention.dense.lora_B.weight"][3] = 1e6
    adapter = write_lora(tmp_path / "mine", tensors)
    message = refused(DataError, checkpoint, target, adapter=adapter)
    assert "transformer.layers.1.attention.dense.weight' with its adapter" in message
    assert "row 3" in message
    assert "--weights f32" in message
    convert(checkpoint, target, adapter=adapter, weights="f32")


def test_command_merges_and_refuses(
    checkpoint: Path, adapter: Path, target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["convert", str(checkpoint), str(target), "--adapter"]
    assert cli.main([*arguments, str(adapter), "--lora-alpha", "16"]) == 0
    assert "16 is used as you asked" in capsys.readouterr().err
    same = write_lora(tmp_path / "same", lora_tensors(SHAPES), lora_alpha=16)
    expected = golden.tensors(convert(checkpoint, tmp_path / "same.safetensors", adapter=same))
    assert golden.tensors(target) == expected
    wrong: list[tuple[list[str], int]] = [
        ([*arguments, str(adapter), "--lora-alpha", "nan"], 2),
        ([*arguments, str(adapter), "--lora-alpha", "many"], 2),
        ([*arguments, str(write_prefix(tmp_path / "prefix"))], 2),
        ([*arguments, str(tmp_path / "nowhere")], 3),
        ([*arguments[:-1], "--lora-alpha", "8"], 2),
    ]
    for line, code in wrong:
        assert cli.main(line) == code
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_info_shows_what_was_merged(
    checkpoint: Path, adapter: Path, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(checkpoint, target, adapter=adapter)
    assert cli.main(["info", str(target)]) == 0
    assert "LoRA: rank 4 on 8 matrices" in capsys.readouterr().out


def test_header_whose_list_of_adapters_is_none_is_no_obstacle(checkpoint: Path, adapter: Path, target: Path) -> None:
    with open_packed(convert(checkpoint, target, weights="f16")) as origin:
        merged = merge.with_adapter(replace(origin, about={"adapters": "x"}), adapter, None)
    assert [record["name"] for record in merged.about["adapters"]] == ["mine"]
