"""The prefix encoder: the official tensors, its dropout, and files that both sides read."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_adapter import config

pytest.importorskip("torch", reason="torch is not installed")

import torch

from glmcpu import adapters
from glmcpu.tuning import encoder, state
from glmcpu.tuning.encoder import PrefixEncoder

CONFIG = config()
D = CONFIG.channels // CONFIG.heads


@pytest.mark.parametrize("projection", [False, True])
def test_what_is_saved_is_read_as_the_same_prefix(projection: bool, tmp_path: Path) -> None:
    made = PrefixEncoder(CONFIG, 5, projection, 1)
    state.write_prefix(tmp_path / "p", made.official(), encoder.configuration({"model_type": "chatglm"}, 5, projection))
    read = adapters.read(tmp_path / "p", CONFIG)
    assert read.prefix is not None
    keys, values = (t.detach().numpy()[:, 0] for t in made(1))
    assert keys.shape == (CONFIG.layers, 5, CONFIG.heads, D)
    np.testing.assert_allclose(read.prefix.keys, keys, rtol=0, atol=1e-5)
    np.testing.assert_allclose(read.prefix.values, values, rtol=0, atol=1e-5)
    table = json.loads((tmp_path / "p" / "config.json").read_text())
    assert (table["pre_seq_len"], table["prefix_projection"]) == (5, projection)


@pytest.mark.parametrize("projection", [False, True])
def test_torch_reads_the_official_names_out_of_the_file(projection: bool, tmp_path: Path) -> None:
    made = PrefixEncoder(CONFIG, 4, projection, 1)
    state.write_prefix(tmp_path, made.official(), {})
    table = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    wide = 2 * CONFIG.layers * CONFIG.channels
    expected = {"embedding.weight": (4, CONFIG.channels if projection else wide)}
    if projection:
        expected |= {"trans.0.weight": (CONFIG.channels,) * 2, "trans.0.bias": (CONFIG.channels,)}
        expected |= {"trans.2.weight": (wide, CONFIG.channels), "trans.2.bias": (wide,)}
    assert {name: tuple(t.shape) for name, t in table.items()} == {
        f"transformer.prefix_encoder.{name}": shape for name, shape in expected.items()
    }
    assert all(t.dtype == torch.float32 for t in table.values())


def test_a_seed_fixes_the_beginning_and_leaves_torchs_own_generator_alone() -> None:
    before = torch.random.get_rng_state()
    one, same, other = (PrefixEncoder(CONFIG, 4, False, seed).embedding.weight for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_tenth_is_dropped_for_each_sequence_and_the_rest_is_larger() -> None:
    made = PrefixEncoder(CONFIG, 64, False, 1)
    keys, _ = made(3, torch.Generator().manual_seed(3))
    exact, _ = made(3)
    dropped = keys == 0
    assert 0.09 < float(dropped.float().mean()) < 0.11
    torch.testing.assert_close(keys[~dropped], exact[~dropped] / 0.9)
    assert not torch.equal(dropped[:, 0], dropped[:, 1])
