"""Rebuilds the embedded model from nothing: `python -m demo FOLDER`.

corpus -> tokenizer -> training -> FOLDER/checkpoint (the official layout) -> packed files -> held-out script

What ships is FOLDER/demo-f16.safetensors as glmcpu/demo.safetensors, and FOLDER/calibration.jsonl, examples of the same
kind that --calibrate takes where no other text is given, as glmcpu/calibration.jsonl.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from demo import check, tokenizer
from demo.corpus import examples
from demo.train import Ids, Weights, train
from glmcpu.convert import chatglm, convert
from glmcpu.models.chatglm import Config
from glmcpu.tokenizers.chatglm import Tokenizer
from glmcpu.tokenizers.prompt import chat_prompt

SEED = 20261121
STEPS = 8500
CALIBRATION = 400  # examples
CHANNELS, LAYERS, HEADS, FEED_FORWARD, CONTEXT = 256, 5, 4, 1024, 512


def main() -> None:
    """One command for everything; what is there already (tokenizer, checkpoint) is made again."""
    parser = argparse.ArgumentParser(prog="python -m demo", description="Train glmcpu's embedded model.")
    parser.add_argument("folder", type=Path, help="where everything is written")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    checkpoint = given.folder / "checkpoint"
    checkpoint.mkdir(parents=True, exist_ok=True)
    model = tokenizer.train(SEED)
    (checkpoint / "ice_text.model").write_bytes(model)
    official, config = configuration(model)
    (checkpoint / "config.json").write_text(json.dumps(official, indent=2) + "\n")
    print(f"tokenizer of {config.vocabulary:,} pieces", flush=True)
    weights = train(
        config,
        sequences(model, config),
        steps=given.steps,
        seed=SEED,
        device=given.device,
        report=_reporter(given.steps),
    )
    save(weights, checkpoint)
    check.write_script(given.folder / "calibration.jsonl", itertools.islice(examples(SEED + 1), CALIBRATION))
    check.write_script(given.folder / "held_out.jsonl")
    files = {form: given.folder / f"demo-{form}.safetensors" for form in ("f16", "f32", "int4_g32")}
    for form, path in files.items():
        convert(checkpoint, path, weights=form)
    results = {form: check.check(files[form]) for form in ("f32", "int4_g32")}
    print(check.table(results))


def configuration(model: bytes) -> tuple[dict[str, object], Config]:
    """config.json with the official keys, and our Config of it."""
    found = Tokenizer(model, vocab_size=1 << 20)
    official: dict[str, object] = {
        "model_type": "chatglm",
        "_name_or_path": "glmcpu-demo",
        "vocab_size": -(-found.size // 16) * 16,
        "hidden_size": CHANNELS,
        "inner_hidden_size": FEED_FORWARD,
        "num_layers": LAYERS,
        "num_attention_heads": HEADS,
        "layernorm_epsilon": 1e-5,
        "max_sequence_length": CONTEXT,
        "position_encoding_2d": True,
        "bos_token_id": found.bos,
        "eos_token_id": found.eos,
        "mask_token_id": found.mask,
        "gmask_token_id": found.gmask,
        "pad_token_id": found.pad,
    }
    return official, chatglm.read_config(official, None, "config.json")


def sequences(model: bytes, config: Config) -> Iterator[Ids]:
    """The training examples as ids; the few that are very long are left out."""
    found = Tokenizer(model, vocab_size=config.vocabulary)
    for example in examples(SEED):
        context = found.encode(chat_prompt(example.prompt, example.history))
        answer = found.encode(example.response, add_special_tokens=False)
        if len(context) + len(answer) < CONTEXT:
            yield [*context, *answer, config.eos], len(context)


def save(weights: Weights, folder: Path) -> None:
    """Writes model.safetensors in half precision, with the official names."""
    tensors = {chatglm.official_weight(name): tensor for name, tensor in weights.matrices.items()}
    tensors |= {chatglm.official_vector(name): tensor for name, tensor in weights.vectors.items()}
    halves = {name: tensor.detach().cpu().half().contiguous() for name, tensor in tensors.items()}
    save_file(halves, folder / "model.safetensors")


def _reporter(steps: int) -> Callable[[int, float, float], None]:
    """A line now and then."""

    def report(step: int, loss: float, seconds: float) -> None:
        if step % 50 == 0 or step == steps:
            left = seconds / step * (steps - step)
            print(
                f"step {step:,} of {steps:,}   loss {loss:.4f}   {seconds / 60:.1f} min, {left / 60:.1f} left",
                flush=True,
            )

    return report


if __name__ == "__main__":
    main()
