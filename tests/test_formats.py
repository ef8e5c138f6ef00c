"""One body over every format in the folder; then what only the official schemes promise."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from running import quantized_by_token, ran

from glmcpu import formats
from glmcpu.errors import UsageError
from glmcpu.formats import Weight

F32 = np.float32
OnThreads = Callable[[Callable[[], Any]], Any]
every_format = pytest.mark.parametrize("name", formats.names())
# The worst error of a weight, as a part of the largest in its row.
STEP = {"f32": 0.0, "f16": 2**-11, "int8": 0.6 / 127, "int4": 0.51 / 7, "int4_g32": 1 / 6}
STEP |= {"int4_g64": 1 / 4, "int4_g128": 1 / 4, "int3_g32": 1 / 3}  # the largest of many is cut off
SHAPES = [(1, 1), (15, 31), (16, 32), (17, 33), (50, 100), (32, 160), (100, 8), (3, 300)]


def _random(O: int, I: int) -> NDArray[np.float32]:
    return np.random.default_rng(1000 * O + I).normal(size=(O, I)).astype(F32)


def _packed(name: str, weight: NDArray[np.float32], scale: NDArray[np.float32] | None = None) -> Weight:
    """Packed arrays as they come out of a model file: read-only."""
    arrays = formats.load(name).pack(weight, scale)
    bias = np.random.default_rng(0).normal(size=len(weight)).astype(F32)
    for array in (*arrays.values(), bias):
        array.flags.writeable = False
    return Weight(name, arrays, bias, *weight.shape)


def _matmul(x: NDArray[np.float32], weight: Weight) -> NDArray[np.float32]:
    out = np.full((len(x), weight.O), 1e9, F32)
    ran(formats.load(weight.format).matmul, out, x, weight.arrays, weight.bias)
    return out


def _as_multiplied(x: NDArray[np.float32], name: str) -> NDArray[np.float64]:
    """x as the format's matmul sees it: itself, or quantized to int8 by groups."""
    if formats.load(name).EXACT:
        return x.astype(np.float64)
    codes, scales, _ = quantized_by_token(x)
    return (codes * np.repeat(scales.astype(np.float64), 32, axis=1))[:, : x.shape[1]]


def test_the_formats_are_the_files_of_the_folder() -> None:
    files = {p.stem for p in Path(formats.__file__).parent.glob("*.py") if not p.name.startswith("_")}
    assert formats.names() == sorted(files)
    assert files >= set(STEP)


def test_an_unknown_format_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match=r"'int4g32'; did you mean int4_g32\? formats: f16 f32"):
        formats.load("int4g32")
    with pytest.raises(UsageError, match=r"^[ -~]+x1b[ -~]+; formats: f16"):
        formats.load("\x1b")


@every_format
def test_bits_per_weight_are_what_the_layout_takes(name: str) -> None:
    kind = formats.load(name)
    O, I = 4096, 4096
    bits = 8 * sum(np.dtype(dtype).itemsize * int(np.prod(shape)) for shape, dtype in kind.layout(O, I).values())
    assert bits / (O * I) == pytest.approx(kind.BITS_PER_WEIGHT, abs=0.01)


@pytest.mark.parametrize(("O", "I"), SHAPES)
@every_format
def test_packed_arrays_have_the_stated_layout(name: str, O: int, I: int) -> None:
    kind, blocks = formats.load(name), -(-O // 16)
    arrays, layout = kind.pack(_random(O, I)), kind.layout(O, I)
    assert {key: (a.shape, a.dtype.type) for key, a in arrays.items()} == layout
    assert all(shape[0] == blocks and shape[2] == 16 for shape, _ in layout.values())
    assert all(a.flags.c_contiguous for a in arrays.values())


@pytest.mark.parametrize(("O", "I"), SHAPES)
@every_format
def test_rows_are_the_weight_within_the_formats_step(name: str, O: int, I: int) -> None:
    weight = _random(O, I)
    packed = _packed(name, weight)
    error = np.abs(formats.unpack(packed) - weight)
    assert (error <= STEP[name] * np.abs(weight).max(axis=1, keepdims=True)).all()
    ids = [O - 1, 0, O // 2, 0]
    assert np.array_equal(formats.rows(packed, ids), formats.unpack(packed)[ids])
    assert np.array_equal(formats.unpack(packed, O // 2, O), formats.unpack(packed)[O // 2 :])
    assert formats.rows(packed, ids).flags.c_contiguous  # kernels read on from one row to the next


@every_format
def test_what_is_filled_up_is_zero(name: str) -> None:
    packed = _packed(name, _random(17, 33))
    ids, I = np.arange(32), packed.arrays[next(iter(packed.arrays))].shape[1] if formats.load(name).EXACT else 64
    whole = formats.decoded(formats.load(name), packed.arrays, ids, I)
    assert not whole[17:].any()
    assert not whole[:, 33:].any()


@every_format
def test_packing_by_slabs_gives_the_bits_of_packing_at_once(name: str, on_threads: OnThreads) -> None:
    kind, weight = formats.load(name), _random(70, 100)
    whole = on_threads(lambda: tuple(kind.pack(weight).values()))
    for rows in (16, 48):
        slabs = [kind.pack(weight[begin : begin + rows]) for begin in range(0, 70, rows)]
        for key, array in zip(kind.layout(70, 100), whole, strict=True):
            assert np.concatenate([slab[key] for slab in slabs]).tobytes() == array.tobytes()


@every_format
def test_a_row_of_zeros_stays_zero(name: str) -> None:
    weight = _random(16, 64)
    weight[3], weight[5, 32:], weight[6] = 0, 0, -0.0
    plain = formats.unpack(_packed(name, weight))
    assert not plain[[3, 6]].any()
    assert not plain[5, 32:].any()


@pytest.mark.parametrize(("O", "I"), SHAPES)
@every_format
def test_matmul_is_the_product_with_the_unpacked_weight(name: str, O: int, I: int, on_threads: OnThreads) -> None:
    packed = _packed(name, _random(O, I))
    for T in [*range(1, 20), 40]:
        x = _random(T, I)
        out = on_threads(lambda x=x: _matmul(x, packed))
        expected = _as_multiplied(x, name) @ formats.unpack(packed).astype(np.float64).T + packed.bias
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=2e-5)


@every_format
def test_a_long_product_loses_no_precision(name: str, on_threads: OnThreads) -> None:
    x, packed = _random(3, 16384), _packed(name, _random(40, 16384))
    out = on_threads(lambda: _matmul(x, packed))
    expected = _as_multiplied(x, name) @ formats.unpack(packed).astype(np.float64).T + packed.bias
    assert np.linalg.norm(out - expected) < 2e-5 * np.linalg.norm(expected)
    exact = x.astype(np.float64) @ formats.unpack(packed).astype(np.float64).T + packed.bias
    assert np.linalg.norm(out - exact) < 0.015 * np.linalg.norm(exact)


@every_format
def test_a_token_alone_has_the_bits_it_has_among_others(name: str) -> None:
    x, packed = _random(19, 100), _packed(name, _random(50, 100))
    together = _matmul(x, packed)
    for t in range(19):
        assert _matmul(x[t : t + 1].copy(), packed).tobytes() == together[t].tobytes()


@every_format
def test_an_output_does_not_depend_on_the_other_outputs(name: str) -> None:
    x, weight = _random(5, 64), _random(48, 64)
    whole = formats.load(name).pack(weight)
    part = formats.load(name).pack(weight[16:32])
    bias, both, alone = np.zeros(48, F32), np.empty((5, 48), F32), np.empty((5, 16), F32)
    for array in (*whole.values(), *part.values(), bias):
        array.flags.writeable = False
    ran(formats.load(name).matmul, both, x, whole, bias)
    ran(formats.load(name).matmul, alone, x, part, bias[:16])
    assert np.array_equal(both[:, 16:32], alone)


@every_format
def test_zero_activations_give_the_bias(name: str) -> None:
    packed = _packed(name, _random(17, 33))
    assert np.array_equal(_matmul(np.zeros((5, 33), F32), packed), np.tile(packed.bias, (5, 1)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@every_format
def test_nan_and_infinity_show_in_their_token_only(name: str, bad: float) -> None:
    x, packed = _random(9, 100), _packed(name, _random(50, 100))
    clean = _matmul(x, packed)
    x[4, 70] = bad
    out = _matmul(x, packed)
    assert not np.isfinite(out[4]).any()
    assert np.array_equal(np.delete(out, 4, axis=0), np.delete(clean, 4, axis=0))


@every_format
def test_activations_of_any_size_are_multiplied(name: str) -> None:
    packed = _packed(name, np.ones((16, 32), F32))
    for value in (1e-20, 1e30):
        out = _matmul(np.full((1, 32), value, F32), packed) - packed.bias
        np.testing.assert_allclose(out, np.full((1, 16), 32 * value), rtol=0.01, atol=1e-6)


# --- the official schemes ---


def wrapped(codes: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """The low bits of whole numbers, as the official cast keeps them."""
    return (codes + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)


def _official(weight: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """What torch computes from half weights, in NumPy's half precision: half(max / levels), then round(w / scale)."""
    half = weight.astype(np.float16)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.abs(half).max(axis=1, keepdims=True) / np.float16(2 ** (bits - 1) - 1)
        codes = np.nan_to_num(np.rint(half / scale), posinf=0, neginf=0).astype(F32)
    codes = wrapped(np.where(scale == 0, 0, codes), bits)
    return np.asarray(codes * scale.astype(F32), F32)


@pytest.mark.parametrize(("name", "bits"), [("int8", 8), ("int4", 4)])
def test_official_formats_are_torchs_rule_to_the_bit(name: str, bits: int) -> None:
    rng = np.random.default_rng(bits)
    weight = rng.normal(size=(200, 96)).astype(F32) * (10.0 ** rng.uniform(-4, 4, (200, 1))).astype(F32)
    weight[7], weight[8] = 0, 1
    assert np.array_equal(formats.unpack(_packed(name, weight)), _official(weight, bits))


@pytest.mark.parametrize(("name", "bits"), [("int8", 8), ("int4", 4)])
def test_ties_go_to_the_even_code(name: str, bits: int) -> None:
    levels = 2 ** (bits - 1) - 1
    ties = np.arange(-levels, levels) + 0.5
    weight = np.append(ties, levels).astype(F32)[None] / 64
    found = formats.unpack(_packed(name, weight))
    assert np.array_equal(found, _official(weight, bits))
    assert np.array_equal(found[0, :-1] * 64, np.rint(ties))


CODED = [("int8", 8, -128), *((name, 4, -8) for name in ("int4", "int4_g32", "int4_g64", "int4_g128"))]


@pytest.mark.parametrize(("name", "bits", "lowest"), CODED)
def test_codes_of_a_checkpoint_come_back_exactly_with_its_scales(name: str, bits: int, lowest: int) -> None:
    rng = np.random.default_rng(bits)
    codes = rng.integers(lowest, 2 ** (bits - 1), (40, 96)).astype(F32)
    codes[1], codes[2, :32], codes[3] = 0, 0, 1
    scale = (10.0 ** rng.uniform(-4, 1, 40)).astype(np.float16).astype(F32)
    scale[5] = 0
    weight = codes * scale[:, None]
    assert np.array_equal(formats.unpack(_packed(name, weight, scale)), weight)


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_scales_in_single_precision_are_kept_in_full(name: str) -> None:
    scale = np.random.default_rng(1).uniform(1e-3, 1, 20).astype(F32)
    weight = np.tile(np.arange(-7, 8, dtype=F32), (20, 4)) * scale[:, None]
    assert np.array_equal(formats.unpack(_packed(name, weight, scale)), weight)


@pytest.mark.parametrize(("name", "bits", "largest"), [("int8", 8, 190), ("int4", 4, 10)])
def test_a_code_too_large_for_its_row_wraps_as_officially_and_leaves_the_others_alone(
    name: str, bits: int, largest: int
) -> None:
    # In units of the smallest half: largest / levels rounds down to a scale of 1.
    units = np.array([[largest, 1, 2, 3, 4, 5, -6, 7, largest, largest, -largest, 0, 0, 0, 0, 0]], F32)
    found = formats.unpack(_packed(name, units * F32(2**-24))) * F32(2**24)
    assert np.array_equal(found, wrapped(units, bits))
