"""Writes a random ChatGLM-6B checkpoint in the official layout, full size by default, without torch.

    python benchmarks/random_checkpoint.py FOLDER               13.4 GB in 8 shards
    python benchmarks/random_checkpoint.py FOLDER --layers 1    2.5 GB

Linears, embedding and lm_head are float16 ~ N(0, 0.02), layer norms float32 near 1; lm_head is stored, as in the
official file. The numbers repeat after 4 million: one block of them is made and written over and over.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# The writer of torch's format is the tests' own; nothing of it belongs in the package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from torch_files import View, save_index, state_dict_pickle, write_torch_zip

V, C, F, H = 130528, 4096, 16384, 32
OLD_V = 150528  # the official shards were cut when the vocabulary still had image tokens
SHARD_BYTES = 2_000_000_000
BLOCK = 4 << 20


@dataclass(frozen=True)
class Tensor:
    """A tensor to be written; `mean` is its mean."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    mean: float = 0.0

    @property
    def elements(self) -> int:
        return int(np.prod(self.shape))

    @property
    def size_bytes(self) -> int:
        return self.elements * np.dtype(self.dtype).itemsize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    start = time.perf_counter()
    options.folder.mkdir(parents=True, exist_ok=True)
    size_bytes = write_checkpoint(options.folder, options.layers, options.seed)
    seconds = time.perf_counter() - start
    print(f"{options.folder}: {size_bytes / 1e9:.2f} GB in {seconds:.1f} s")


def write_checkpoint(folder: Path, layers: int, seed: int) -> int:
    """Writes the whole folder; returns the bytes of weights."""
    rng = np.random.default_rng(seed)
    noise = 0.02 * rng.standard_normal(BLOCK, np.float32)
    shards = list(sharded(tensors(layers)))
    weight_map = {}
    total_bytes = 0
    for number, shard in enumerate(shards, 1):
        path = folder / f"pytorch_model-{number:05d}-of-{len(shards):05d}.bin"
        write_shard(path, shard, noise, rng)
        weight_map |= {tensor.name: path.name for tensor in shard}
        total_bytes += path.stat().st_size
        print(f"{path.name}  {path.stat().st_size / 1e9:.2f} GB  {len(shard)} tensors", file=sys.stderr)
    save_index(folder / "pytorch_model.bin.index.json", dict(sorted(weight_map.items())))
    (folder / "config.json").write_text(json.dumps(config(layers), indent=2))
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False, "num_image_tokens": 0}, indent=2))
    return total_bytes


def tensors(layers: int) -> Iterator[Tensor]:
    """Every tensor of the model, in the order of its state dict."""
    yield Tensor("transformer.word_embeddings.weight", "f2", (V, C))
    for n in range(layers):
        layer = f"transformer.layers.{n}."
        yield from layer_norm(layer + "input_layernorm")
        yield Tensor(layer + "attention.rotary_emb.inv_freq", "f2", (C // H // 4,))
        yield from linear(layer + "attention.query_key_value", 3 * C, C)
        yield from linear(layer + "attention.dense", C, C)
        yield from layer_norm(layer + "post_attention_layernorm")
        yield from linear(layer + "mlp.dense_h_to_4h", F, C)
        yield from linear(layer + "mlp.dense_4h_to_h", C, F)
    yield from layer_norm("transformer.final_layernorm")
    yield Tensor("lm_head.weight", "f2", (V, C))


def linear(name: str, outputs: int, inputs: int) -> Iterator[Tensor]:
    yield Tensor(name + ".weight", "f2", (outputs, inputs))
    yield Tensor(name + ".bias", "f2", (outputs,))


def layer_norm(name: str) -> Iterator[Tensor]:
    yield Tensor(name + ".weight", "f4", (C,), mean=1.0)
    yield Tensor(name + ".bias", "f4", (C,))


def sharded(all_tensors: Iterator[Tensor]) -> Iterator[list[Tensor]]:
    """Cuts the tensors where the official shards are cut: as many as fit, in order."""
    shard: list[Tensor] = []
    room = SHARD_BYTES
    for tensor in all_tensors:
        counted = tensor.size_bytes // V * OLD_V if tensor.shape[0] == V else tensor.size_bytes
        if shard and counted > room:
            yield shard
            shard, room = [], SHARD_BYTES
        shard.append(tensor)
        room -= counted
    yield shard


def write_shard(path: Path, shard: list[Tensor], noise: np.ndarray, rng: np.random.Generator) -> None:
    views, storages = {}, {}
    for number, tensor in enumerate(shard):
        storage_type = {"f2": "HalfStorage", "f4": "FloatStorage"}[tensor.dtype]
        stride = (*tensor.shape[1:], 1)
        views[tensor.name] = View(storage_type, str(number), tensor.elements, 0, tensor.shape, stride)
        storages[str(number)] = (tensor.size_bytes, values(tensor, noise, int(rng.integers(BLOCK))))
    with path.open("wb") as file:
        write_torch_zip(file, path.stem, state_dict_pickle(views), storages)


def values(tensor: Tensor, noise: np.ndarray, begin: int) -> Iterator[memoryview]:
    """The tensor's bytes, in blocks of noise that start at `begin` of the block."""
    if tensor.name.endswith("inv_freq"):
        yield (10000.0 ** (-np.arange(tensor.elements) / tensor.elements)).astype(tensor.dtype).data.cast("B")
        return
    left = tensor.elements
    block = (np.roll(noise, -begin)[:left] + np.float32(tensor.mean)).astype(tensor.dtype)
    while left:
        part = block[:left]
        yield part.data.cast("B")
        left -= part.size


def config(layers: int) -> dict[str, object]:
    return {
        "architectures": ["ChatGLMModel"],
        "bos_token_id": 130004,
        "eos_token_id": 130005,
        "mask_token_id": 130000,
        "gmask_token_id": 130001,
        "pad_token_id": 3,
        "hidden_size": C,
        "inner_hidden_size": F,
        "layernorm_epsilon": 1e-05,
        "max_sequence_length": 2048,
        "model_type": "chatglm",
        "num_attention_heads": H,
        "num_layers": layers,
        "position_encoding_2d": True,
        "torch_dtype": "float16",
        "transformers_version": "4.23.1",
        "use_cache": True,
        "vocab_size": V,
    }


if __name__ == "__main__":
    main()
