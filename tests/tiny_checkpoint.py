"""A checkpoint in the official layout that goes with the tiny tokenizer: two layers of random weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tiny_tokenizer import ROWS, tiny_model, tiny_tokenizer
from torch_files import save_torch

C, F, L, H = 32, 64, 2, 2
Tensors = dict[str, NDArray[Any]]


def official_config() -> dict[str, Any]:
    """config.json"""
    tokenizer = tiny_tokenizer()
    return {
        "model_type": "chatglm",
        "vocab_size": ROWS,
        "hidden_size": C,
        "inner_hidden_size": F,
        "num_layers": L,
        "num_attention_heads": H,
        "layernorm_epsilon": 1e-5,
        "max_sequence_length": 2048,
        "position_encoding_2d": True,
        "bos_token_id": tokenizer.bos,
        "eos_token_id": tokenizer.eos,
        "mask_token_id": tokenizer.mask,
        "gmask_token_id": tokenizer.gmask,
        "pad_token_id": tokenizer.pad,
    }


def official_tensors(seed: int = 0) -> Tensors:
    """Names, shapes and types as in the official files: float16, norms float32; the lm_head is left out."""
    random = np.random.default_rng(seed)

    def half(*shape: int) -> NDArray[np.float16]:
        return (random.standard_normal(shape) * 0.3).astype(np.float16)

    def norm(name: str) -> Tensors:
        weight, bias = random.standard_normal((2, C)).astype(np.float32)
        return {f"{name}.weight": 1 + 0.1 * weight, f"{name}.bias": 0.1 * bias}

    tensors: Tensors = {"transformer.word_embeddings.weight": half(ROWS, C)}
    for n in range(L):
        layer = f"transformer.layers.{n}"
        tensors |= norm(f"{layer}.input_layernorm") | norm(f"{layer}.post_attention_layernorm")
        for name, outputs, inputs in (
            ("attention.query_key_value", 3 * C, C),
            ("attention.dense", C, C),
            ("mlp.dense_h_to_4h", F, C),
            ("mlp.dense_4h_to_h", C, F),
        ):
            tensors |= {f"{layer}.{name}.weight": half(outputs, inputs), f"{layer}.{name}.bias": half(outputs)}
    return tensors | norm("transformer.final_layernorm")


def write_checkpoint(folder: Path, *, tensors: Tensors | None = None, tokenizer: bool = True, **changes: Any) -> Path:
    """The folder, with `tensors` in place of official_tensors() and `changes` in config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(official_config() | changes))
    save_torch(folder / "pytorch_model.bin", official_tensors() if tensors is None else tensors)
    if tokenizer:
        (folder / "ice_text.model").write_bytes(tiny_model())
    return folder
