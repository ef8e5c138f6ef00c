"""The official names: what config.json means, and which tensors a checkpoint must and may hold."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import golden
import numpy as np
import pytest
from tiny_checkpoint import Tensors, official_config, official_tensors, write_checkpoint

from glmcpu.convert import chatglm as official
from glmcpu.convert.checkpoint import open_checkpoint
from glmcpu.errors import DataError
from glmcpu.models import chatglm
from glmcpu.models.chatglm import Config

SLIM = {"vocab_size": 130528, "bos_token_id": 130004, "eos_token_id": 130005, "mask_token_id": 130000}
SLIM |= {"gmask_token_id": 130001, "pad_token_id": 3}
LAYER = "transformer.layers.1"


def read(table: dict[str, Any], tokenizer_config: dict[str, Any] | None = None) -> Config:
    config: Config = official.read_config(table, tokenizer_config, "the/config.json")
    return config


def refused(table: dict[str, Any], tokenizer_config: dict[str, Any] | None = None) -> str:
    with pytest.raises(DataError, match=r"^the/config\.json: ") as error:
        read(table, tokenizer_config)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_keys_that_are_absent_have_the_official_defaults() -> None:
    """Those of the class, which are of the old vocabulary."""
    assert read({}) == Config(
        vocabulary=150528,
        channels=4096,
        layers=28,
        heads=32,
        feed_forward=16384,
        epsilon=1e-5,
        trained_context=2048,
        rotary_parts=2,
        bos=150004,
        eos=150005,
        mask=150000,
        gmask=150001,
        pad=0,
        image_tokens=20000,
        tied=True,
    )


def test_official_config_of_today_is_read() -> None:
    config = read(SLIM, {"num_image_tokens": 0})
    assert (config.vocabulary, config.bos, config.gmask, config.pad, config.image_tokens) == (
        130528,
        130004,
        130001,
        3,
        0,
    )


@pytest.mark.parametrize("checkpoint", [*golden.FLOAT, *golden.QUANTIZED])
def test_config_of_every_golden_is_read(checkpoint: str) -> None:
    table, tokenizer_config = (
        json.loads((golden.path(checkpoint) / name).read_text()) for name in ("config.json", "tokenizer_config.json")
    )
    config = read(table, tokenizer_config)
    assert config.layers == table["num_layers"]
    assert config.channels == table["hidden_size"]
    assert config.rotary_parts == (2 if table["position_encoding_2d"] else 1)
    assert config.image_tokens == (20000 if checkpoint == "tiny-old-vocab" else 0)
    assert config.tied


def test_pad_token_that_is_null_is_the_default() -> None:
    assert read(SLIM | {"pad_token_id": None}).pad == 0


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"padded_vocab_size": 65024, "multi_query_attention": True}, "ChatGLM2"),
        ({"ffn_hidden_size": 13696}, "ChatGLM2"),
        ({"model_type": "llama"}, "llama"),
        ({"model_type": "glm4"}, "glm4"),
        ({"model_type": ["chatglm"]}, "chatglm"),
    ],
)
def test_other_architectures_are_refused_by_name(changes: dict[str, Any], what: str) -> None:
    message = refused(SLIM | changes)
    assert what in message
    assert "ChatGLM-6B" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_layers", "28"),
        ("num_layers", 28.0),
        ("num_layers", True),
        ("num_layers", None),
        ("num_layers", -1),
        ("num_layers", 10**12),
        ("vocab_size", 0),
        ("hidden_size", 10**9),
        ("hidden_size", []),
        ("num_attention_heads", 0),
        ("layernorm_epsilon", "small"),
        ("layernorm_epsilon", -1),
        ("bos_token_id", None),
        ("gmask_token_id", 10**9),
        ("position_encoding_2d", "yes"),
        ("tie_word_embeddings", 1),
    ],
)
def test_value_of_a_wrong_kind_or_size_is_refused(key: str, value: object) -> None:
    assert key in refused(official_config() | {key: value})


def test_whole_number_is_good_for_epsilon() -> None:
    assert read(official_config() | {"layernorm_epsilon": 0}).epsilon == 0.0


@pytest.mark.parametrize(
    ("table", "tokenizer_config"),
    [
        (SLIM | {"bos_token_id": 150004 - 20000 + 1}, None),
        ({"vocab_size": 150528, "bos_token_id": 130004}, None),
        ({"vocab_size": 130528, "bos_token_id": 130005}, None),
        (SLIM, {"num_image_tokens": 20000}),
        (SLIM, {}),  # absent means 20000
        ({}, {"num_image_tokens": 0}),
    ],
)
def test_files_of_two_vocabulary_revisions_are_refused(
    table: dict[str, Any], tokenizer_config: dict[str, Any] | None
) -> None:
    assert "revision" in refused(table, tokenizer_config)


@pytest.mark.parametrize("value", [-1, "0", None, True, 0.0])
def test_image_tokens_of_a_wrong_kind_are_refused(value: object) -> None:
    assert "num_image_tokens" in refused(SLIM, {"num_image_tokens": value})


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({}, (0, False)),
        ({"quantization_bit": 0}, (0, False)),
        ({"quantization_bit": None}, (0, False)),
        ({"quantization_bit": 8}, (8, False)),
        ({"quantization_bit": 4, "quantization_embeddings": True}, (4, True)),
        ({"quantization_bit": 0, "quantization_embeddings": True}, (0, False)),
    ],
)
def test_quantization_is_read(table: dict[str, Any], expected: tuple[int, bool]) -> None:
    assert official.quantization(table, "c") == expected


@pytest.mark.parametrize("bits", [1, 2, 16, -4, "4", True, [4], {"bits": 4}, 4.5])
def test_other_numbers_of_bits_are_refused(bits: object) -> None:
    with pytest.raises(DataError, match="quantization_bit"):
        official.quantization({"quantization_bit": bits}, "c")


def test_official_names_are_those_of_the_official_file() -> None:
    """368 names: 28 layers of 13, the embedding, the final norm and the lm_head; inv_freq is not read."""
    config = read({})
    names = {official.official_vector(ours) for ours in chatglm.vectors(config)}
    assert len(names) == len(chatglm.vectors(config)) == 28 * 8 + 2
    assert {
        "transformer.layers.27.attention.query_key_value.bias",
        "transformer.layers.0.attention.dense.bias",
        "transformer.layers.0.mlp.dense_h_to_4h.bias",
        "transformer.layers.0.mlp.dense_4h_to_h.bias",
        "transformer.layers.0.input_layernorm.weight",
        "transformer.layers.0.post_attention_layernorm.bias",
        "transformer.final_layernorm.weight",
    } <= names


@pytest.mark.parametrize("checkpoint", [*golden.FLOAT, *golden.SAME_AS_MINI, *golden.QUANTIZED])
def test_every_golden_has_a_source_for_each_matrix(checkpoint: str) -> None:
    with open_checkpoint(golden.path(checkpoint)) as opened:
        config = read(opened.config, opened.tokenizer_config)
        sources = official.sources(opened, config, "here")
        assert sources.keys() == chatglm.matrices(config).keys()
        for source in sources.values():
            assert source.weight in opened.tensors
            assert (source.scale in opened.tensors) if source.bits else source.scale is None


def sources_of(tmp_path: Path, tensors: Tensors, **changes: Any) -> dict[str, official.Source]:
    folder = write_checkpoint(tmp_path, tensors=tensors, tokenizer=False, **changes)
    with open_checkpoint(folder) as opened:
        found: dict[str, official.Source] = official.sources(opened, read(opened.config), "the/folder")
        return found


def drop(name: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.pop(name)


def put(name: str, array: Any) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: array})


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        (drop(f"{LAYER}.mlp.dense_h_to_4h.weight"), (f"{LAYER}.mlp.dense_h_to_4h.weight", "missing")),
        (drop(f"{LAYER}.attention.dense.bias"), (f"{LAYER}.attention.dense.bias", "missing")),
        (drop("transformer.final_layernorm.bias"), ("transformer.final_layernorm.bias", "missing")),
        (
            put(f"{LAYER}.attention.dense.weight", np.zeros((32, 31), np.float16)),
            (f"{LAYER}.attention.dense.weight", "[32, 31]", "[32, 32]", "pytorch_model.bin"),
        ),
        (put(f"{LAYER}.attention.dense.weight", np.zeros((32, 32), np.int8)), ("i8", "f16")),
        (put(f"{LAYER}.attention.dense.weight", np.zeros((32, 32), np.int64)), ("i64", "f16")),
        (put("transformer.final_layernorm.bias", np.zeros((32, 1), np.float32)), ("[32, 1]", "[32]")),
        (put("transformer.layers.2.attention.dense.bias", np.zeros(32, np.float32)), ("layers.2.", "another model")),
        (put("transformer.prefix_encoder.embedding.weight", np.zeros((8, 128), np.float32)), ("prefix_encoder",)),
    ],
)
def test_tensor_that_is_missing_superfluous_or_another_is_named(
    change: Callable[[Tensors], object], facts: tuple[str, ...], tmp_path: Path
) -> None:
    tensors = official_tensors()
    change(tensors)
    with pytest.raises(DataError, match=r"^the/folder: ") as error:
        sources_of(tmp_path, tensors)
    assert "\n" not in str(error.value)
    assert all(fact in str(error.value) for fact in facts)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_weights_may_be_of_any_float_type(dtype: Any, tmp_path: Path) -> None:
    tensors = {name: array.astype(dtype) for name, array in official_tensors().items()}
    assert {source.bits for source in sources_of(tmp_path, tensors).values()} == {0}


def test_tensors_the_official_code_ignores_are_ignored(tmp_path: Path) -> None:
    tensors = official_tensors()
    tensors[f"{LAYER}.attention.rotary_emb.inv_freq"] = np.zeros(4, np.float16)
    tensors["transformer.rotary_emb.inv_freq"] = np.zeros(4, np.float16)
    tensors["lm_head.weight"] = np.zeros((3, 3), np.float16)
    assert "lm_head" not in sources_of(tmp_path, tensors)


def test_untied_model_needs_its_lm_head(tmp_path: Path) -> None:
    tensors = official_tensors()
    with pytest.raises(DataError, match=r"lm_head\.weight' is missing"):
        sources_of(tmp_path, tensors, tie_word_embeddings=False)
    tensors["lm_head.weight"] = tensors["transformer.word_embeddings.weight"].copy()
    assert sources_of(tmp_path, tensors, tie_word_embeddings=False)["lm_head"].weight == "lm_head.weight"


def test_float_weights_under_a_quantized_config_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"f16 .* i8"):
        sources_of(tmp_path, official_tensors(), quantization_bit=8)


def test_quantized_weights_under_a_float_config_are_refused() -> None:
    with open_checkpoint(golden.path("tiny-int8")) as opened:
        opened.config["quantization_bit"] = 0
        with pytest.raises(DataError, match=r"i8 .* f16"):
            official.sources(opened, read(opened.config, opened.tokenizer_config), "here")


def test_quantized_weight_without_its_scale_is_refused() -> None:
    with open_checkpoint(golden.path("tiny-int8")) as opened:
        tensors = {
            name: info for name, info in opened.tensors.items() if name != f"{LAYER}.mlp.dense_4h_to_h.weight_scale"
        }
        opened.tensors = tensors
        with pytest.raises(DataError, match=r"dense_4h_to_h\.weight_scale' is missing"):
            official.sources(opened, read(opened.config, opened.tokenizer_config), "here")
