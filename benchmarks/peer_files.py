"""Writes the peers' model files: random 4-bit weights in the shape of ChatGLM-6B.

    python benchmarks/peer_files.py chatglm.cpp q4.ggml ice_text.model     3.5 GB, needs the checkpoint's tokenizer
    python benchmarks/peer_files.py llama.cpp   q4.gguf                    3.8 GB, needs `pip install gguf`

llama.cpp cannot run the first generation of ChatGLM. Its file is a Llama with as many weights in each layer: 67.1 M in
four attention matrices, and 134.1 M in a gated feed-forward of width 10912 instead of 134.2 M in a plain one of 16384;
28 layers, 4096 channels and the vocabulary are the same, its lm_head has no embedding to share with. So the bytes and
the multiplications for a token are the same. q4_0 is 4.5 bits a weight: a half-precision scale for every 32.
"""

import argparse
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

C, H, F, V = 4096, 32, 16384, 130528
LLAMA_F = 10912
EPSILON, CONTEXT, EOP, PAD = 1e-5, 2048, 130005, 3
GROUP, GROUP_BYTES = 32, 18  # of q4_0: the scale, then 32 nibbles
GGML_F32, GGML_Q4_0 = 0, 2
SLAB = 1 << 16  # groups that are drawn; they repeat


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peer", choices=("chatglm.cpp", "llama.cpp"))
    parser.add_argument("file", type=Path)
    parser.add_argument("tokenizer", type=Path, nargs="?", help="ice_text.model, for chatglm.cpp")
    parser.add_argument("--layers", type=int, default=28)
    options = parser.parse_args()
    if options.peer == "llama.cpp":
        write_gguf(options.file, options.layers)
    elif options.tokenizer is None:
        parser.error("chatglm.cpp's file holds a tokenizer: give the ice_text.model of the checkpoint")
    else:
        with options.file.open("wb") as file:
            write_ggml(file, options.layers, options.tokenizer.read_bytes())
    print(f"{options.file}  {options.file.stat().st_size / 1e9:.2f} GB")


def random_groups(n: int) -> np.ndarray:
    """n groups of q4_0 (n, 18) u8, weights about -0.02..0.02."""
    groups = np.random.default_rng(n).integers(0, 256, (min(n, SLAB), GROUP_BYTES), dtype=np.uint8)
    groups[:, :2] = np.array([0.02 / 8], np.float16).view(np.uint8)
    return np.resize(groups, (n, GROUP_BYTES))


def write_ggml(file: BinaryIO, layers: int, tokenizer: bytes) -> None:
    """chatglm.cpp's format: magic, kind of model (1), hyperparameters, tokenizer, tensors at multiples of 16."""
    config = (2, GGML_Q4_0, V, C, H, H, layers, F, EPSILON, 0, 10000.0, CONTEXT, EOP, PAD)
    file.write(b"ggml" + struct.pack("<i8ififiii", 1, *config))
    file.write(struct.pack("<i", len(tokenizer)) + tokenizer)

    def tensor(name: str, shape: tuple[int, ...], kind: int, data: np.ndarray) -> None:
        file.write(struct.pack("<i", len(name)) + name.encode())
        file.write(struct.pack(f"<{2 + len(shape)}i", len(shape), *shape, kind))
        file.write(b"\0" * (-file.tell() % 16) + data.tobytes())

    def matrix(name: str, O: int, I: int) -> None:
        tensor(f"{name}.weight", (O, I), GGML_Q4_0, random_groups(O * I // GROUP))

    def linear(name: str, O: int, I: int) -> None:
        matrix(name, O, I)
        tensor(f"{name}.bias", (O,), GGML_F32, np.zeros(O, np.float32))

    def norm(name: str) -> None:
        tensor(f"{name}.weight", (C,), GGML_F32, np.ones(C, np.float32))
        tensor(f"{name}.bias", (C,), GGML_F32, np.zeros(C, np.float32))

    matrix("transformer.word_embeddings", V, C)
    for n in range(layers):
        layer = f"transformer.layers.{n}"
        norm(f"{layer}.input_layernorm")
        linear(f"{layer}.attention.query_key_value", 3 * C, C)
        linear(f"{layer}.attention.dense", C, C)
        norm(f"{layer}.post_attention_layernorm")
        linear(f"{layer}.mlp.dense_h_to_4h", F, C)
        linear(f"{layer}.mlp.dense_4h_to_h", C, F)
    norm("transformer.final_layernorm")


def write_gguf(path: Path, layers: int) -> None:
    """A Llama in llama.cpp's format, with a vocabulary of made-up words."""
    import gguf

    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(2 * CONTEXT)
    writer.add_embedding_length(C)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(LLAMA_F)
    writer.add_head_count(H)
    writer.add_head_count_kv(H)
    writer.add_layer_norm_rms_eps(EPSILON)
    writer.add_vocab_size(V)
    writer.add_rope_dimension_count(C // H)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([b"<unk>", b"<s>", b"</s>", *(f"<t{i}>".encode() for i in range(3, V))])
    writer.add_token_scores([0.0] * V)
    writer.add_token_types([1] * V)
    made: dict[tuple[int, int], np.ndarray] = {}  # the writer keeps all tensors: equal ones are kept once

    def matrix(name: str, O: int, I: int) -> None:
        if (O, I) not in made:
            made[O, I] = random_groups(O * I // GROUP).reshape(O, I // GROUP * GROUP_BYTES)
        writer.add_tensor(f"{name}.weight", made[O, I], raw_dtype=gguf.GGMLQuantizationType.Q4_0)

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(C, np.float32))

    matrix("token_embd", V, C)
    for n in range(layers):
        norm(f"blk.{n}.attn_norm")
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"blk.{n}.{name}", C, C)
        norm(f"blk.{n}.ffn_norm")
        matrix(f"blk.{n}.ffn_gate", LLAMA_F, C)
        matrix(f"blk.{n}.ffn_up", LLAMA_F, C)
        matrix(f"blk.{n}.ffn_down", C, LLAMA_F)
    norm("output_norm")
    matrix("output", V, C)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
