"""The official names of ChatGLM-6B: config keys and tensors, and what a checkpoint must and may hold.

Behind this file only our own words exist. A checkpoint is a closed world: the config says which tensors there must be,
with which shapes; a tensor that is neither of those nor one the official code ignores is refused by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from glmcpu.adapters.lora import LowRank
from glmcpu.errors import DataError, printable
from glmcpu.models import chatglm
from glmcpu.models.chatglm import Config

from .checkpoint import Checkpoint

GENERATION = "chatglm"  # the file in glmcpu/models
SLIM, OLD, IMAGE_TOKENS = 130528, 150528, 20000
_FLOATS = ("f16", "bf16", "f32", "f64")

# official key -> (our field, the default of the official configuration class)
_FIELDS: dict[str, tuple[str, int | float | None]] = {
    "vocab_size": ("vocabulary", OLD),
    "hidden_size": ("channels", 4096),
    "num_layers": ("layers", 28),
    "num_attention_heads": ("heads", 32),
    "inner_hidden_size": ("feed_forward", 16384),
    "layernorm_epsilon": ("epsilon", 1e-5),
    "max_sequence_length": ("trained_context", 2048),
    "bos_token_id": ("bos", 150004),
    "eos_token_id": ("eos", 150005),
    "mask_token_id": ("mask", 150000),
    "gmask_token_id": ("gmask", 150001),
    "pad_token_id": ("pad", 0),
}
_LATER = ("padded_vocab_size", "multi_query_attention", "ffn_hidden_size", "rmsnorm")


@dataclass(frozen=True)
class Source:
    """Where one of our matrices is in the checkpoint; `scale` names its row scales when it is stored quantized."""

    weight: str
    O: int
    I: int
    bits: int  # 4, 8, or 0 for floats
    scale: str | None
    low_rank: LowRank | None = None  # what an adapter adds to it (merge.py)


def read_config(table: Mapping[str, Any], tokenizer_config: Mapping[str, Any] | None, name: str) -> Config:
    """Our Config of an official config.json; `name` begins the messages.

    Raises DataError for another architecture, a value out of range, and a mix of the two vocabularies.
    """
    kind = table.get("model_type", "chatglm")
    if kind != "chatglm" or any(key in table for key in _LATER):
        what = "ChatGLM2 or ChatGLM3" if kind == "chatglm" else printable(kind)
        raise DataError(f"{name}: is a {what} model, and this glmcpu runs the first ChatGLM-6B")
    values = {ours: _number(table, key, default, name) for key, (ours, default) in _FIELDS.items()}
    parts = 2 if _flag(table, "position_encoding_2d", True, name) else 1
    config = Config(
        **values,
        rotary_parts=parts,
        image_tokens=_image_tokens(values, tokenizer_config, name),
        tied=_flag(table, "tie_word_embeddings", True, name),
    )
    chatglm.check(config, name, {ours: key for key, (ours, _) in _FIELDS.items()})
    return config


def official_config(config: Config) -> dict[str, Any]:
    """The official config.json of our Config."""
    table = {key: getattr(config, ours) for key, (ours, _) in _FIELDS.items()}
    return {"model_type": "chatglm", "position_encoding_2d": config.rotary_parts == 2, **table}


def quantization(table: Mapping[str, Any], name: str) -> tuple[int, bool]:
    """(bits of the stored linear weights or 0, whether the embedding is stored quantized too)."""
    bits = table.get("quantization_bit") or 0
    if bits not in (0, 4, 8):
        raise DataError(
            f"{name}: quantization_bit is {printable(repr(bits), 40)} in config.json, and 4 and 8 exist; "
            "fetch config.json again"
        )
    return int(bits), _flag(table, "quantization_embeddings", False, name) if bits else False


def sources(checkpoint: Checkpoint, config: Config, name: str) -> dict[str, Source]:
    """Our matrix -> its source, every tensor of the checkpoint compared with what the config demands.

    Raises DataError naming tensors that are missing, superfluous or of another shape or type.
    """
    bits, embedding_too = quantization(checkpoint.config, name)
    found: dict[str, Source] = {}
    allowed = set(_ignored(config))
    for ours, (O, I) in chatglm.matrices(config).items():
        theirs, stored = official_weight(ours), bits if ours.startswith("layers.") or embedding_too else 0
        scale = f"{theirs}_scale" if stored else None
        width = -(-I // 2) if stored == 4 else I
        _require(checkpoint, name, theirs, (O, width), ("i8",) if stored else _FLOATS)
        if scale:
            _require(checkpoint, name, scale, (O,), _FLOATS)
        if stored == 4 and I % 2:
            raise DataError(f"{name}: {I} inputs of '{theirs}' do not fill bytes of two; the config is damaged")
        found[ours] = Source(theirs, O, I, stored, scale)
        allowed |= {theirs, f"{theirs}_scale"}
    for theirs, n in vectors(config).values():
        _require(checkpoint, name, theirs, (n,), _FLOATS)
        allowed.add(theirs)
    if extra := [tensor for tensor in checkpoint.tensors if tensor not in allowed]:
        shown = ", ".join(f"'{printable(tensor, 60)}'" for tensor in extra[:3])
        raise DataError(f"{name}: {len(extra)} tensors are not part of ChatGLM-6B: {shown}; is this another model?")
    if ghosts := [tensor for tensor in checkpoint.promised if tensor not in allowed]:
        raise DataError(
            f"{name}: tensor '{printable(ghosts[0], 60)}' is not part of ChatGLM-6B, and "
            f"{checkpoint.missing(ghosts[0])}; fetch all files from one revision"
        )
    return found


def vectors(config: Config) -> dict[str, tuple[str, int]]:
    """Our bias or norm's vector -> its official name and length."""
    return {ours: (official_vector(ours), n) for ours, n in chatglm.vectors(config).items()}


def official_vector(ours: str) -> str:
    """The official name of one of our biases or norms' vectors."""
    place, _, kind = ours.rpartition(".")
    if kind == "bias":
        return official_weight(place).removesuffix("weight") + "bias"
    layer, _, norm = place.rpartition(".")
    official = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm", "": "final_layernorm"}
    part = official[norm if layer else ""]
    prefix = f"transformer.{layer}." if layer else "transformer."
    return prefix + part + (".weight" if kind == "scale" else ".bias")


def official_weight(ours: str) -> str:
    """The official name of one of our matrices."""
    if ours == "embedding":
        return "transformer.word_embeddings.weight"
    if ours == "lm_head":
        return "lm_head.weight"
    layer, _, part = ours.rpartition(".")
    official = {
        "qkv": "attention.query_key_value",
        "attention_out": "attention.dense",
        "mlp_up": "mlp.dense_h_to_4h",
        "mlp_down": "mlp.dense_4h_to_h",
    }
    return f"transformer.{layer}.{official[part]}.weight"


def _ignored(config: Config) -> list[str]:
    """Tensors the official code does not use: the rotary frequencies, and the lm_head of a tied model."""
    rotary = [f"transformer.layers.{n}.attention.rotary_emb.inv_freq" for n in range(config.layers)]
    return [*rotary, "transformer.rotary_emb.inv_freq", "lm_head.weight", "lm_head.weight_scale"]


def _require(checkpoint: Checkpoint, name: str, tensor: str, shape: tuple[int, ...], dtypes: tuple[str, ...]) -> None:
    info = checkpoint.tensors.get(tensor)
    if info is None:
        raise DataError(f"{name}: tensor '{tensor}' is missing: {checkpoint.missing(tensor)}; fetch the folder again")
    if info.shape != shape or info.dtype not in dtypes:
        raise DataError(
            f"{name}: tensor '{tensor}' is {info.dtype} {list(info.shape)} in {printable(info.file, 60)}, and "
            f"config.json demands {dtypes[0]} {list(shape)}; they belong to different models"
        )


def _number(table: Mapping[str, Any], key: str, default: int | float | None, name: str) -> Any:
    value = table.get(key, default)
    if key == "pad_token_id" and value is None:
        return 0
    kinds = (int, float) if key == "layernorm_epsilon" else (int,)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise DataError(f"{name}: {key} is {printable(value)!r}, and must be a number; fetch config.json again")
    return float(value) if key == "layernorm_epsilon" else value


def _flag(table: Mapping[str, Any], key: str, default: bool, name: str) -> bool:
    value = table.get(key, default)
    if not isinstance(value, bool):
        raise DataError(f"{name}: {key} is {printable(value)!r}, and must be true or false; fetch config.json again")
    return value


def _image_tokens(values: Mapping[str, Any], tokenizer_config: Mapping[str, Any] | None, name: str) -> int:
    """How many image tokens stand before the text's ids; refuses files of the two vocabularies mixed."""
    vocabulary, bos = values["vocabulary"], values["bos"]
    expected = IMAGE_TOKENS if vocabulary == OLD else 0
    if vocabulary in (SLIM, OLD) and bos != 130004 + expected:
        raise DataError(
            f"{name}: vocab_size {vocabulary:,} and bos_token_id {bos:,} belong to different revisions of ChatGLM-6B; "
            f"with this size <sop> is {130004 + expected:,}; fetch all files from one revision"
        )
    if tokenizer_config is None:
        return expected
    stated = tokenizer_config.get("num_image_tokens", IMAGE_TOKENS)
    if isinstance(stated, bool) or not isinstance(stated, int) or stated < 0:
        raise DataError(f"{name}: num_image_tokens is {printable(stated)!r} in tokenizer_config.json; fetch it again")
    if stated != expected:
        raise DataError(
            f"{name}: vocab_size {vocabulary:,} goes with {expected:,} image tokens and tokenizer_config.json states "
            f"{stated:,}: files of two revisions are mixed; fetch all files from one revision"
        )
    return stated
