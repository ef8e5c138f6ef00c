"""Adapters as peft and the official trainer save them, random ones for the model of tiny_checkpoint."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tiny_checkpoint import C, F, L, Tensors, official_config
from torch_files import save_safetensors, save_torch

from glmcpu.convert import chatglm as official
from glmcpu.models.chatglm import Config

QKV = "attention.query_key_value"
SHAPES = {QKV: (3 * C, C), "attention.dense": (C, C), "mlp.dense_h_to_4h": (F, C), "mlp.dense_4h_to_h": (C, F)}
OURS = {QKV: "qkv", "attention.dense": "attention_out", "mlp.dense_h_to_4h": "mlp_up", "mlp.dense_4h_to_h": "mlp_down"}
PREFIX = "transformer.prefix_encoder"


def config() -> Config:
    """The model's hyperparameters."""
    read: Config = official.read_config(official_config(), None, "config.json")
    return read


def random(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def module(layer: int, part: str = QKV) -> str:
    """A module's name in the official model."""
    return f"transformer.layers.{layer}.{part}"


def lora_tensors(
    parts: Iterable[str] = (QKV,), r: int = 4, start: str = "base_model.model.", end: str = ".weight", seed: int = 0
) -> Tensors:
    """A and B of the parts of every layer under the names peft gives them, `start` and `end` aside."""
    tensors: Tensors = {}
    for n in range(L):
        for number, part in enumerate(parts):
            O, I = SHAPES[part]
            name, own = f"{start}{module(n, part)}.lora", 100 * seed + 10 * n + number
            tensors |= {f"{name}_A{end}": random(r, I, seed=own), f"{name}_B{end}": 0.1 * random(O, r, seed=own)}
    return tensors


def write_lora(folder: Path, tensors: Tensors | None = None, file: str = "adapter_model.bin", **stated: Any) -> Path:
    """A folder as peft saves it, rank 4 and alpha 32; `stated` goes into adapter_config.json, None takes a key out."""
    folder.mkdir(parents=True, exist_ok=True)
    save = save_safetensors if file.endswith(".safetensors") else save_torch
    save(folder / file, lora_tensors() if tensors is None else tensors)
    table = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "THUDM/chatglm-6b",
        "r": 4,
        "lora_alpha": 32,
        "lora_dropout": 0.1,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "modules_to_save": None,
        "target_modules": ["query_key_value"],
    }
    kept = {key: value for key, value in (table | stated).items() if value is not None}
    (folder / "adapter_config.json").write_text(json.dumps(kept))
    return folder


def prefix_tensors(tokens: int = 5, projected: bool = False) -> Tensors:
    """A prefix as the official trainer saves it."""
    if not projected:
        return {f"{PREFIX}.embedding.weight": random(tokens, 2 * L * C)}
    shapes = {"embedding.weight": (tokens, C), "trans.0.weight": (C, C), "trans.0.bias": (C,)}
    shapes |= {"trans.2.weight": (2 * L * C, C), "trans.2.bias": (2 * L * C,)}
    return {f"{PREFIX}.{name}": random(*shape, seed=9) for name, shape in shapes.items()}


def write_prefix(folder: Path, tensors: Tensors | None = None, **stated: Any) -> Path:
    """A folder as the official trainer saves it; `stated` goes into config.json, which is left out without any."""
    folder.mkdir(parents=True, exist_ok=True)
    save_torch(folder / "pytorch_model.bin", prefix_tensors() if tensors is None else tensors)
    if stated:
        (folder / "config.json").write_text(json.dumps(official_config() | stated))
    return folder
