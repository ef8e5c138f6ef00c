"""What the formats with a scale for each group of inputs promise: any codes can be stored, and good ones are chosen."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from running import quantized_by_token, ran

from glmcpu import formats
from glmcpu.errors import UsageError

F32 = np.float32
GROUPED = [name for name in formats.names() if formats.is_grouped(name)]
every_grouped = pytest.mark.parametrize("name", GROUPED)
SHAPES = [(1, 1), (1, 33), (15, 31), (17, 64), (50, 100), (16, 129), (33, 300)]

Chosen = tuple[NDArray[np.int8], NDArray[np.float32]]


def _random(O: int, I: int) -> NDArray[np.float32]:
    return np.random.default_rng(1000 * O + I).normal(size=(O, I)).astype(F32)


def _chosen(name: str, O: int, I: int) -> Chosen:
    """Any codes the format has, with scales that are halves, of either sign."""
    kind, rng = formats.group_format(name), np.random.default_rng(1000 * O + I)
    codes = rng.integers(kind.CODES[0], kind.CODES[1] + 1, (O, I)).astype(np.int8)
    return codes, rng.normal(size=(O, -(-I // kind.GROUP))).astype(np.float16).astype(F32)


def _weight(name: str, codes: NDArray[np.int8], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    group = formats.group_format(name).GROUP
    return codes * np.repeat(scales, group, axis=1)[:, : codes.shape[1]]


def _rows(name: str, arrays: Any, O: int, I: int) -> NDArray[np.float32]:
    return formats.decoded(formats.load(name), arrays, np.arange(O), I)


def _repacked(name: str, weight: NDArray[np.float32]) -> NDArray[np.float32]:
    return _rows(name, formats.load(name).pack(weight), *weight.shape)


def _matmul(name: str, x: NDArray[np.float32], arrays: Any, O: int) -> NDArray[np.float32]:
    out = np.full((len(x), O), 1e9, F32)
    ran(formats.load(name).matmul, out, x, arrays, np.zeros(O, F32))
    return out


# --- which formats these are ---


def test_a_formats_name_says_its_bits_and_its_group() -> None:
    assert set(GROUPED) >= {"int4_g32", "int4_g64", "int4_g128", "int3_g32"}
    for name in GROUPED:
        kind = formats.group_format(name)
        assert kind is formats.load(name)
        bits = (kind.CODES[1] - kind.CODES[0] + 1).bit_length() - 1
        lowest = -(2 ** (bits - 1))
        assert (lowest, -lowest - 1) == kind.CODES
        assert name == f"int{bits}_g{kind.GROUP}"
        assert bits + 16 / kind.GROUP == kind.BITS_PER_WEIGHT


@pytest.mark.parametrize("name", ["f16", "f32", "int4", "int8"])
def test_formats_without_groups_are_named_as_such(name: str) -> None:
    assert not formats.is_grouped(name)
    with pytest.raises(UsageError, match=f"'{name}' has no scales of groups; formats with them: int3_g32 int4_g128"):
        formats.group_format(name)


def test_an_unknown_format_is_refused_here_too() -> None:
    for ask in (formats.is_grouped, formats.group_format):
        with pytest.raises(UsageError, match="did you mean int4_g32"):
            ask("int4g32")


# --- storing codes ---


@pytest.mark.parametrize(("O", "I"), SHAPES)
@every_grouped
def test_stored_codes_and_scales_come_back_exactly(name: str, O: int, I: int) -> None:
    codes, scales = _chosen(name, O, I)
    arrays = formats.group_format(name).store(codes, scales)
    assert {key: (a.shape, a.dtype.type) for key, a in arrays.items()} == formats.load(name).layout(O, I)
    assert all(a.flags.c_contiguous for a in arrays.values())
    assert np.array_equal(_rows(name, arrays, O, I), _weight(name, codes, scales))


@every_grouped
def test_every_code_is_kept_at_every_place_of_a_group(name: str) -> None:
    kind = formats.group_format(name)
    codes = np.zeros((kind.GROUP, kind.GROUP), np.int8)
    for code in range(kind.CODES[0], kind.CODES[1] + 1):
        np.fill_diagonal(codes, code)
        arrays = kind.store(codes, np.ones((kind.GROUP, 1), F32))
        assert np.array_equal(_rows(name, arrays, *codes.shape), codes)


@every_grouped
def test_scales_are_rounded_to_the_nearest_half(name: str) -> None:
    codes, scales = np.ones((16, 300), np.int8), _chosen(name, 16, 300)[1] * F32(1.0001)
    found = _rows(name, formats.group_format(name).store(codes, scales), 16, 300)
    assert np.array_equal(found, _weight(name, codes, scales.astype(np.float16).astype(F32)))


@every_grouped
def test_what_is_filled_up_has_code_zero_and_scale_zero(name: str) -> None:
    codes, scales = _chosen(name, 17, 33)
    whole = _rows(name, formats.group_format(name).store(codes, scales), 32, 64)
    assert np.array_equal(whole[:17, :33], _weight(name, codes, scales))
    assert not whole[17:].any()
    assert not whole[:, 33:].any()


@every_grouped
def test_slabs_of_rows_have_the_bits_of_all_rows_at_once(name: str) -> None:
    kind, (codes, scales) = formats.group_format(name), _chosen(name, 70, 100)
    whole = kind.store(codes, scales)
    slabs = [kind.store(codes[at : at + 16], scales[at : at + 16]) for at in range(0, 70, 16)]
    for key, array in whole.items():
        assert np.concatenate([slab[key] for slab in slabs]).tobytes() == array.tobytes()


@every_grouped
def test_arrays_of_any_memory_order_and_read_only_ones_are_stored(name: str) -> None:
    kind, (codes, scales) = formats.group_format(name), _chosen(name, 17, 100)
    other, others = np.asfortranarray(codes), np.asfortranarray(scales)
    other.flags.writeable = others.flags.writeable = False
    for key, array in kind.store(codes, scales).items():
        assert kind.store(other, others)[key].tobytes() == array.tobytes()


@every_grouped
def test_a_packed_weight_stored_again_has_the_same_bytes(name: str) -> None:
    kind, weight = formats.group_format(name), _random(50, 300)
    packed = kind.pack(weight)
    scales = packed["scales"].transpose(0, 2, 1).reshape(64, -1)[:50].astype(F32)
    codes = np.rint(_rows(name, packed, 50, 300) / _weight(name, np.ones((50, 300), np.int8), scales))
    for key, array in kind.store(codes.astype(np.int8), scales).items():
        assert array.tobytes() == packed[key].tobytes()


@every_grouped
def test_codes_the_format_does_not_have_are_refused(name: str) -> None:
    kind, (codes, scales) = formats.group_format(name), _chosen(name, 16, 64)
    for code in (kind.CODES[0] - 1, kind.CODES[1] + 1, 127, -128):
        codes[3, 5] = code
        with pytest.raises(UsageError, match=rf"{code}.*: expected {kind.CODES[0]}\.\.{kind.CODES[1]}; clip"):
            kind.store(codes, scales)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 65520, -1e9])
@every_grouped
def test_scales_that_half_precision_cannot_hold_are_refused(name: str, bad: float) -> None:
    kind, (codes, scales) = formats.group_format(name), _chosen(name, 16, 64)
    scales[2, 0] = bad
    with pytest.raises(UsageError, match=f"a scale of {F32(bad)}: half precision holds at most 65,504; look"):
        kind.store(codes, scales)


@every_grouped
def test_codes_and_scales_that_do_not_belong_together_are_refused(name: str) -> None:
    kind, (codes, scales) = formats.group_format(name), _chosen(name, 16, 300)
    pairs = [
        (codes.astype(F32), scales),
        (codes.reshape(-1), scales),
        (codes, scales[:, 1:]),
        (codes[1:], scales),
        (codes, scales.reshape(-1)),
    ]
    for other, others in pairs:
        with pytest.raises(UsageError, match=rf"do not belong together; .* a scale for every {kind.GROUP} inputs$"):
            kind.store(other, others)  # type: ignore[arg-type]


# --- multiplying ---


@every_grouped
def test_matmul_is_the_reference_for_every_number_of_tokens_from_1_to_65(name: str) -> None:
    O, I = 37, 301
    codes, scales = _chosen(name, O, I)
    arrays, weight = formats.group_format(name).store(codes, scales), _weight(name, codes, scales).astype(np.float64)
    x = _random(65, I)
    x_codes, x_scales, _ = quantized_by_token(x)
    expected = (x_codes * np.repeat(x_scales.astype(np.float64), 32, axis=1))[:, :I] @ weight.T
    for T in range(1, 66):
        np.testing.assert_allclose(_matmul(name, x[:T].copy(), arrays, O), expected[:T], rtol=1e-5, atol=5e-5)


@every_grouped
def test_the_largest_codes_and_activations_lose_nothing(name: str) -> None:
    kind, I = formats.group_format(name), 256
    pairs = [(code, sign * F32(127)) for code in kind.CODES for sign in (1, -1)]
    for code, value in pairs:
        arrays = kind.store(np.full((16, I), code, np.int8), np.ones((16, I // kind.GROUP), F32))
        for T in (1, 9):
            assert (_matmul(name, np.full((T, I), value, F32), arrays, 16) == I * code * value).all()


# --- choosing scales ---


def _plain_error(weight: NDArray[np.float32], name: str, divisor: float) -> NDArray[np.float32]:
    """The squared error of each group when the scale is simply its largest weight over `divisor`."""
    kind = formats.group_format(name)
    groups = weight.reshape(-1, kind.GROUP)
    largest = np.take_along_axis(groups, np.abs(groups).argmax(axis=1)[:, None], axis=1)
    scale = (largest / F32(divisor)).astype(np.float16).astype(F32)
    codes = np.clip(np.rint(groups / scale), *kind.CODES)
    return np.asarray(((codes * scale - groups) ** 2).sum(axis=1))


@pytest.mark.parametrize("kind", ["normal", "uniform", "heavy tails", "few values"])
@every_grouped
def test_searched_scales_are_never_worse_than_the_largest_over_the_lowest_code(name: str, kind: str) -> None:
    rng = np.random.default_rng(6)
    weight = {
        "normal": rng.normal(size=(256, 256)) * 0.02,
        "uniform": rng.uniform(-1, 1, (256, 256)),
        "heavy tails": rng.standard_t(2, (256, 256)),
        "few values": rng.choice([-3.0, -1.0, 1.0, 2.0], (256, 256)),
    }[kind].astype(F32)
    group, lowest = formats.group_format(name).GROUP, formats.group_format(name).CODES[0]
    error = ((_repacked(name, weight) - weight) ** 2).reshape(-1, group).sum(axis=1)
    plain = np.minimum(_plain_error(weight, name, lowest), _plain_error(weight, name, -lowest))
    # Scales are rounded to half after the search, which may cost a thousandth.
    assert (error <= plain * 1.005 + 1e-6 * (weight.reshape(-1, group) ** 2).sum(axis=1)).all()


@every_grouped
def test_searched_scales_are_clearly_better_on_normal_weights(name: str) -> None:
    weight, (lowest, highest) = _random(256, 512) * F32(0.02), formats.group_format(name).CODES
    error = ((_repacked(name, weight) - weight) ** 2).sum()
    assert error < 0.94 * _plain_error(weight, name, lowest).sum()
    assert error < 0.8 * _plain_error(weight, name, highest).sum()


@pytest.mark.parametrize("size", [1e-7, 1e-5, 1e-3, 1e3])
@every_grouped
def test_small_and_large_groups_keep_their_precision(name: str, size: float) -> None:
    weight = _random(16, 128) * F32(size)
    error = np.abs(_repacked(name, weight) - weight).max()
    assert error <= np.abs(weight).max() / -formats.group_format(name).CODES[0] + 2**-22


def test_finer_groups_and_more_bits_are_closer_to_weights_with_heavy_tails() -> None:
    weight = np.random.default_rng(5).standard_t(5, (64, 1024)).astype(F32)
    errors = [
        float(((_repacked(name, weight) - weight) ** 2).sum() / (weight**2).sum())
        for name in ("int8", "int4_g32", "int4_g64", "int4_g128", "int3_g32", "int4")
    ]
    assert errors == sorted(errors)
    assert errors[1] < 0.011
    assert errors[4] < 0.041
