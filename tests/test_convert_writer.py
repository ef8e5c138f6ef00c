"""What the writer puts into a packed file: the official numbers, in every format, slab by slab."""

import zlib
from pathlib import Path
from typing import Any

import golden
import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_checkpoint import official_tensors, write_checkpoint

from glmcpu import files, formats, packed
from glmcpu.convert import chatglm as official
from glmcpu.convert import convert, writer
from glmcpu.errors import DataError, MachineError
from glmcpu.formats import Weight, unpack
from glmcpu.models import chatglm
from glmcpu.models.chatglm import Config
from glmcpu.packed import PackedFile

# The largest relative error (Frobenius norm) a format may make of random weights.
ERROR = {"f32": 0.0, "f16": 3e-4, "int8": 0.01, "int4": 0.15, "int4_g32": 0.1}
ERROR |= {"int4_g64": 0.11, "int4_g128": 0.12, "int3_g32": 0.2}


def config_of(file: PackedFile) -> Config:
    return Config(**file.contents.config)


def matrices(file: PackedFile) -> dict[str, Weight]:
    return {name: file.weight(name, O, I) for name, (O, I) in chatglm.matrices(config_of(file)).items()}


def official_name(ours: str) -> str:
    if ours == "embedding":
        return "transformer.word_embeddings.weight"
    bias: str = official.official_vector(f"{ours}.bias")
    return bias.removesuffix("bias") + "weight"


@pytest.mark.parametrize(("checkpoint", "weights"), golden.QUANTIZED.items())
def test_repacked_official_codes_are_the_official_weights_exactly(checkpoint: str, weights: str) -> None:
    file = PackedFile(golden.packed(checkpoint, weights))
    with np.load(golden.path(f"{checkpoint}/golden_dequant_float32.npz")) as dequantized:
        seen = 0
        for ours, weight in matrices(file).items():
            name = official_name(ours)
            if name in dequantized:
                assert weight.format == weights
                np.testing.assert_array_equal(unpack(weight), dequantized[name])
                seen += 1
            else:
                assert weight.format == "f16"  # what the checkpoint keeps in half precision stays so
        assert seen == len(dequantized.files) - ("lm_head.weight" in dequantized)


@pytest.mark.parametrize("weights", formats.names())
@pytest.mark.parametrize("checkpoint", golden.QUANTIZED)
def test_official_quantized_checkpoint_converts_to_every_format(checkpoint: str, weights: str) -> None:
    file = PackedFile(golden.packed(checkpoint, weights))
    with np.load(golden.path(f"{checkpoint}/golden_dequant_float32.npz")) as dequantized:
        for ours, weight in matrices(file).items():
            name = official_name(ours)
            if name in dequantized:
                exact = dequantized[name]
                error = np.linalg.norm(unpack(weight) - exact) / np.linalg.norm(exact)
                assert error <= ERROR[weight.format], (ours, error)


@pytest.mark.parametrize(
    ("weights", "checkpoint"), [("int8", "tiny-int8"), ("int4", "tiny-int4"), ("int4", "tiny-int4-qe")]
)
def test_tiny_mini_quantized_here_has_the_codes_and_scales_of_the_official_quantizer(
    weights: str, checkpoint: str
) -> None:
    ours, theirs = (PackedFile(golden.packed(name, weights)) for name in ("tiny-mini", checkpoint))
    seen = 0
    for name in ours.tensors():
        if theirs.formats.get(name.rpartition(".")[0]) == weights:
            assert ours.raw(name).tobytes() == theirs.raw(name).tobytes(), name
            seen += 1
    # Biases are of the same name as a matrix, and equal too.
    assert seen == 2 * 4 * 3 + (2 if checkpoint.endswith("qe") else 0)


@pytest.mark.parametrize("weights", formats.names())
def test_float_weights_keep_their_values_as_well_as_the_format_can(weights: str) -> None:
    exact, file = (PackedFile(golden.packed("tiny-small-vocab", name)) for name in ("f32", weights))
    for name, weight in matrices(file).items():
        reference = unpack(matrices(exact)[name])
        error = np.linalg.norm(unpack(weight) - reference) / np.linalg.norm(reference)
        assert error <= ERROR[weights], (name, error)
        assert weight.format == weights


def test_biases_and_norms_are_the_stored_ones_in_float32(tmp_path: Path) -> None:
    tensors = official_tensors()
    file = PackedFile(convert(write_checkpoint(tmp_path, tensors=tensors), tmp_path / "out.safetensors"))
    for ours, n in chatglm.vectors(config_of(file)).items():
        stored = tensors[official.official_vector(ours)]
        np.testing.assert_array_equal(file.vector(ours, n), stored.astype(np.float32))


@pytest.mark.parametrize("rows", [1, 16, 48])
@pytest.mark.parametrize("weights", formats.names())
def test_size_of_the_slabs_does_not_change_a_byte(
    rows: int, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tiny-int4-qe: codes, scales of their own and float tensors; 320 and 96 rows are no multiples of 48 or 64."""
    for checkpoint in ("tiny-mini", "tiny-int4-qe"):
        monkeypatch.setattr(writer, "_SLAB_BYTES", rows * 4 * 32)
        small = convert(golden.path(checkpoint), tmp_path / "small.safetensors", weights=weights)
        assert small.read_bytes() == golden.packed(checkpoint, weights).read_bytes()


@pytest.mark.parametrize("weights", formats.names())
@pytest.mark.parametrize("vocabulary", [1, 15, 17, 320])
def test_any_number_of_rows_and_channels_can_be_written(vocabulary: int, weights: str, tmp_path: Path) -> None:
    """Blocks of 16 outputs and groups of 32 inputs are filled up."""
    C, F = 24, 40
    random = np.random.default_rng(vocabulary)
    tensors = {
        name: np.resize(random.standard_normal(5000).astype(array.dtype), shape_of(name, vocabulary, C, F))
        for name, array in official_tensors().items()
    }
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "mask_token_id", "gmask_token_id", "pad_token_id"), 0)
    changes = {"vocab_size": vocabulary, "hidden_size": C, "inner_hidden_size": F, **ids}
    folder = write_checkpoint(tmp_path, tensors=tensors, tokenizer=False, **changes)
    file = packed.verify(convert(folder, tmp_path / "out.safetensors", weights=weights))
    for ours, weight in matrices(file).items():
        exact = tensors[official_name(ours)].astype(np.float32)
        assert unpack(weight).shape == exact.shape
        assert np.linalg.norm(unpack(weight) - exact) <= (ERROR[weights] + 0.05) * np.linalg.norm(exact)
        if weights in ("f32", "f16"):
            np.testing.assert_array_equal(unpack(weight), exact)


def shape_of(name: str, V: int, C: int, F: int) -> tuple[int, ...]:
    last = name.rpartition(".")[2]
    for part, outputs, inputs in (
        ("word_embeddings", V, C),
        ("query_key_value", 3 * C, C),
        ("attention.dense", C, C),
        ("dense_h_to_4h", F, C),
        ("dense_4h_to_h", C, F),
    ):
        if part in name:
            return (outputs, inputs) if last == "weight" else (outputs,)
    return (C,)


def test_tied_embedding_is_stored_once_and_an_untied_lm_head_beside_it() -> None:
    tied, untied = PackedFile(golden.packed("tiny-untied", "f32")), PackedFile(golden.untied_model("cpu").path)
    assert not any(name.startswith("lm_head") for name in tied.tensors())
    lm_head = untied.weight("lm_head", 320, 32)
    assert not np.array_equal(unpack(lm_head), unpack(untied.weight("embedding", 320, 32)))
    np.testing.assert_array_equal(
        unpack(untied.weight("embedding", 320, 32)), unpack(tied.weight("embedding", 320, 32))
    )


@pytest.mark.parametrize("weights", formats.names())
def test_tensors_lie_aligned_and_without_holes(weights: str) -> None:
    file = PackedFile(golden.packed("tiny-small-vocab", weights))
    at = 0
    for name, entry in file.tensors().items():
        assert entry.begin == at, name
        size_bytes = entry.end - entry.begin
        item = np.dtype(packed.DTYPES[entry.dtype]).itemsize
        assert entry.begin % (packed.ALIGNMENT if size_bytes % packed.ALIGNMENT == 0 else item) == 0
        at = entry.end


def test_checksums_are_those_of_the_bytes_on_the_disk() -> None:
    file = PackedFile(golden.packed("tiny-mini", "int8"))
    for name in file.tensors():
        assert file.contents.checksums[name] == f"{zlib.crc32(file.raw(name).data):08x}"


def huge(tmp_path: Path, value: float, dtype: Any = np.float32) -> Path:
    tensors = official_tensors()
    name = "transformer.layers.0.attention.dense.weight"
    tensors[name] = tensors[name].astype(dtype)
    tensors[name][17, 3] = value
    return write_checkpoint(tmp_path / "source", tensors=tensors)


@pytest.mark.parametrize("weights", ["f16", "int8", "int4", "int4_g32"])
def test_weight_that_half_precision_cannot_hold_is_refused_by_name_and_place(weights: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        convert(huge(tmp_path, -70000), tmp_path / "out.safetensors", weights=weights)
    for fact in ("attention.dense.weight", "-70000", "row 17, column 3", "65,504", "--weights f32"):
        assert fact in str(error.value)


def test_f32_holds_every_finite_weight(tmp_path: Path) -> None:
    convert(huge(tmp_path, 3e38), tmp_path / "out.safetensors", weights="f32")


@pytest.mark.parametrize(("value", "dtype"), [(np.nan, np.float32), (np.inf, np.float16), (1e300, np.float64)])
@pytest.mark.parametrize("weights", ["f32", "int4_g32"])
def test_weight_that_is_not_finite_is_refused_in_every_format(
    value: float, dtype: Any, weights: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"attention\.dense\.weight.*row 17, column 3"):
        convert(huge(tmp_path, value, dtype), tmp_path / "out.safetensors", weights=weights)


@pytest.mark.parametrize("name", ["transformer.final_layernorm.weight", "transformer.layers.0.mlp.dense_4h_to_h.bias"])
def test_vector_that_is_not_finite_is_refused_by_name(name: str, tmp_path: Path) -> None:
    tensors = official_tensors()
    tensors[name][2] = np.nan
    with pytest.raises(DataError, match=name):
        convert(write_checkpoint(tmp_path / "source", tensors=tensors), tmp_path / "out.safetensors")


def quantized(tmp_path: Path, change: Any) -> Path:
    """Official int8 tensors made by hand: codes and scales of layer weights, changed by `change`."""
    tensors: dict[str, NDArray[Any]] = {}
    for name, array in official_tensors().items():
        tensors[name] = array
        if ".layers." in name and array.ndim == 2:
            tensors[name] = np.ones(array.shape, np.int8)
            tensors[f"{name}_scale"] = np.ones(len(array), np.float16)
    change(tensors)
    return write_checkpoint(tmp_path / "source", tensors=tensors, quantization_bit=8)


SCALE = "transformer.layers.1.mlp.dense_h_to_4h.weight_scale"


def test_scale_that_is_not_finite_is_refused_by_name(tmp_path: Path) -> None:
    def change(tensors: dict[str, NDArray[Any]]) -> None:
        tensors[SCALE][1] = np.inf

    with pytest.raises(DataError, match=SCALE):
        convert(quantized(tmp_path, change), tmp_path / "out.safetensors", weights="int8")


@pytest.mark.parametrize("weights", ["int8", "f32"])
def test_negative_and_zero_scales_and_code_minus_128_keep_their_meaning(weights: str, tmp_path: Path) -> None:
    def change(tensors: dict[str, NDArray[Any]]) -> None:
        tensors[SCALE][:3] = [-0.5, 0, 0.25]
        tensors[SCALE.removesuffix("_scale")][:3] = -128

    file = PackedFile(convert(quantized(tmp_path, change), tmp_path / "out.safetensors", weights=weights))
    rows = unpack(matrices(file)["layers.1.mlp_up"], 0, 3)
    np.testing.assert_array_equal(rows, np.repeat([[64.0], [0.0], [-32.0]], 32, axis=1))


def test_disk_that_gives_back_other_bytes_is_found_before_the_file_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = writer._Output.put

    def damage(self: Any, name: str, piece: NDArray[Any]) -> int:
        size_bytes: int = put(self, name, piece)
        if name == "layers.0.qkv.codes":
            self._file.seek(self.data_begin + self.tensors[name].begin)
            self._file.write(b"\xff\x00")
        return size_bytes

    monkeypatch.setattr(writer._Output, "put", damage)
    target = tmp_path / "out.safetensors"
    with pytest.raises(MachineError, match=r"layers\.0\.qkv\.codes"):
        convert(golden.path("tiny-mini"), target, weights="int8")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("n", [0, 1, 5, 20])
def test_disk_that_is_full_at_the_nth_write_leaves_nothing(
    n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, calls = writer._Output.put, []

    def full(self: Any, name: str, piece: NDArray[Any]) -> int:
        calls.append(name)
        if len(calls) > n:
            raise OSError(28, "No space left on device")
        return int(put(self, name, piece))

    monkeypatch.setattr(writer._Output, "put", full)
    with pytest.raises(MachineError, match="no space left"):
        convert(golden.path("tiny-mini"), tmp_path / "out.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_space_asked_for_is_the_size_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(files, "require_space", lambda folder, needed_bytes, what: asked.append(needed_bytes))
    target = convert(golden.path("tiny-mini"), tmp_path / "new" / "out.safetensors")
    assert asked == [target.stat().st_size]
