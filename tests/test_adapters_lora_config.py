"""adapter_config.json: which factor it gives each module, and what it says of adapters that are more than LoRA."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_adapter import OURS, QKV, SHAPES, config, lora_tensors, module, write_lora
from tiny_checkpoint import L

from glmcpu import adapters
from glmcpu.errors import DataError

BASE = "base_model.model."


def refused(folder: Path) -> str:
    with pytest.raises(DataError) as error:
        adapters.read(folder, config())
    assert str(error.value).isprintable()
    return str(error.value)


def check(folder: Path, scale: float, lora_alpha: float | None = None) -> None:
    """Every B is multiplied by `scale`."""
    low_rank = adapters.read(folder, config(), lora_alpha=lora_alpha).low_rank
    for n in range(L):
        expected = np.float32(scale) * lora_tensors()[f"{BASE}{module(n)}.lora_B.weight"]
        np.testing.assert_array_equal(low_rank[f"layers.{n}.qkv"].up, expected)


@pytest.mark.parametrize(
    ("stated", "scale"),
    [
        ({"lora_alpha": 8}, 2.0),
        ({"lora_alpha": 1.5}, 0.375),
        ({"use_rslora": True}, 32 / 4**0.5),
        ({"use_rslora": False}, 8.0),
        ({"fan_in_fan_out": True}, 8.0),
        ({"r": None}, 8.0),
        ({"init_lora_weights": "gaussian", "use_dora": False, "rank_pattern": {}, "loftq_config": {}}, 8.0),
        ({"init_lora_weights": True, "layers_to_transform": None, "exclude_modules": ["lm_head"]}, 8.0),
    ],
)
def test_scale_is_alpha_by_rank_or_its_root(stated: dict[str, Any], scale: float, tmp_path: Path) -> None:
    check(write_lora(tmp_path, **stated), scale)


def test_patterns_give_modules_ranks_and_alphas_of_their_own(tmp_path: Path) -> None:
    """The first key that is the name or its end counts; the alpha of a module does not follow its rank."""
    dense, up, down = list(SHAPES)[1:]
    tensors = lora_tensors([QKV, up]) | lora_tensors([dense], r=2)
    tensors |= {name: array for name, array in lora_tensors([down], r=3).items() if "layers.1" in name}
    folder = write_lora(
        tmp_path,
        tensors,
        rank_pattern={"dense": 2, f"^{module(1, down)}": 3, "attention.dense": 100},
        alpha_pattern={"layers.0.attention.query_key_value": 7, "query_key_value": 5, "h_to_4h": 99},
    )
    adapter = adapters.read(folder, config())
    assert adapter.about == "LoRA: ranks 2 to 4 on 7 matrices"
    scales = {"layers.0.qkv": 7 / 4, "layers.1.qkv": 5 / 4, "layers.1.mlp_down": 32 / 3}
    scales |= {f"layers.{n}.mlp_up": 32 / 4 for n in range(L)} | {f"layers.{n}.attention_out": 32 / 2 for n in range(L)}
    assert adapter.low_rank.keys() == scales.keys()
    for n in range(L):
        for part, ours in OURS.items():
            name = f"{BASE}{module(n, part)}.lora_"
            if f"{name}B.weight" in tensors:
                expected = np.float32(scales[f"layers.{n}.{ours}"]) * tensors[f"{name}B.weight"]
                np.testing.assert_array_equal(adapter.low_rank[f"layers.{n}.{ours}"].up, expected)


def test_alpha_that_is_given_goes_before_the_one_stated(tmp_path: Path) -> None:
    folder = write_lora(tmp_path, alpha_pattern={"layers.1.attention.query_key_value": 8})
    adapter = adapters.read(folder, config(), lora_alpha=16)
    b = [lora_tensors()[f"{BASE}{module(n)}.lora_B.weight"] for n in range(L)]
    np.testing.assert_array_equal(adapter.low_rank["layers.0.qkv"].up, np.float32(16 / 4) * b[0])
    np.testing.assert_array_equal(adapter.low_rank["layers.1.qkv"].up, np.float32(8 / 4) * b[1])
    assert adapter.notes == ("adapter_config.json states alpha 32, and 16 is used as you asked",)
    assert adapters.read(folder, config(), lora_alpha=32).notes == ()


def test_alpha_that_is_missing_can_be_given(tmp_path: Path) -> None:
    folder = write_lora(tmp_path, lora_alpha=None)
    assert "--lora-alpha" in refused(folder)
    check(folder, 2, lora_alpha=8)


# --- refused ---

STATED: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    *(({"peft_type": kind}, (kind, "P-Tuning v2")) for kind in ("PREFIX_TUNING", "ADALORA", "IA3", "P_TUNING", "LOHA")),
    ({"peft_type": ["LORA"]}, ("peft_type",)),
    ({"use_dora": True}, ("use_dora", "DoRA", "merge_and_unload")),
    ({"use_qalora": True}, ("use_qalora", "merge_and_unload")),
    ({"lora_bias": True}, ("lora_bias", "merge_and_unload")),
    ({"layer_replication": [[0, 1]]}, ("layer_replication",)),
    ({"trainable_token_indices": [1]}, ("trainable_token_indices",)),
    ({"alora_invocation_tokens": [1]}, ("alora_invocation_tokens",)),
    ({"modules_to_save": ["lm_head"]}, ("modules_to_save", "lm_head", "merge_and_unload")),
    ({"bias": "all"}, ("bias is 'all'", "merge_and_unload")),
    ({"bias": "lora_only"}, ("bias is 'lora_only'",)),
    *(
        ({"init_lora_weights": kind}, (kind, "base weights", "path_initial_model_for_weight_conversion"))
        for kind in ("pissa", "pissa_niter_16", "olora", "loftq", "corda", "lora_ga", "of tomorrow")
    ),
    ({"rank_pattern": {".*dense": 2}}, ("rank_pattern", "'.*dense'", "regular expression")),
    ({"alpha_pattern": {"(a+)+$": 2}}, ("alpha_pattern", "regular expression")),
    ({"alpha_pattern": {r"layers\.0": 2}}, ("alpha_pattern", "regular expression")),
    ({"rank_pattern": [1]}, ("rank_pattern", "an object")),
    ({"rank_pattern": {"dense": 0}}, ("rank_pattern", "rank 0")),
    ({"rank_pattern": {"dense": "8"}}, ("rank_pattern", "rank 8")),
    ({"alpha_pattern": {"dense": "x"}}, ("alpha_pattern", "alpha x")),
    ({"r": 0}, ("r has the rank 0", "1 to 1,024")),
    ({"r": 1025}, ("rank 1025",)),
    ({"r": 8.5}, ("rank 8.5",)),
    ({"r": True}, ("rank True",)),
    ({"r": 8}, ("rank 8", "[4, 32]", "lora_A", "one folder")),
    ({"lora_alpha": 0}, ("lora_alpha", "alpha 0")),
    ({"lora_alpha": -1}, ("alpha -1",)),
    ({"lora_alpha": 1e9}, ("alpha 1000000000.0",)),
    ({"lora_alpha": "32"}, ("alpha 32",)),
    ({"lora_alpha": True}, ("alpha True",)),
    ({"use_rslora": "yes"}, ("use_rslora", "yes")),
    ({"enable_lora": True}, ("enable_lora", "True")),
    ({"enable_lora": [False, False]}, ("enable_lora", "one true")),
    ({"enable_lora": [1, 0, 1]}, ("enable_lora",)),
    ({"enable_lora": []}, ("enable_lora",)),
]


@pytest.mark.parametrize(("stated", "facts"), STATED)
def test_description_of_something_else_is_refused_by_name(
    stated: dict[str, Any], facts: tuple[str, ...], tmp_path: Path
) -> None:
    message = refused(write_lora(tmp_path, **stated))
    assert all(fact in message for fact in (*facts, "adapter_config.json")), message


@pytest.mark.parametrize("content", ["", "{", "[]", "NaN", '{"r": 4, "r": 8}', '{"r": NaN}', "<html>"])
def test_description_that_is_damaged_is_named(content: str, tmp_path: Path) -> None:
    (write_lora(tmp_path) / "adapter_config.json").write_text(content)
    assert "adapter_config.json" in refused(tmp_path)


def test_names_that_would_write_to_the_terminal_are_escaped(tmp_path: Path) -> None:
    folder = write_lora(tmp_path)
    table = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(table | {"peft_type": "\x1b[2J\n"}))
    assert "\\x1b[2J\\n" in refused(folder)
