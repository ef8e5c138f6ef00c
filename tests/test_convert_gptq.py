"""Rounding by the inputs: less error in the outputs than rounding each weight alone, on inputs not seen before too."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from glmcpu import formats
from glmcpu.convert import gptq
from glmcpu.errors import DataError

Array = NDArray[Any]
GROUPED = [name for name in formats.names() if formats.is_grouped(name)]


def inputs(T: int, I: int, seed: int) -> Array:
    """Correlated inputs of uneven power, the same whatever the seed, which draws the tokens only."""
    shape = np.random.default_rng(I)
    mixing = np.linalg.qr(shape.standard_normal((I, I)))[0] * np.arange(1, I + 1) ** -0.6
    power = np.exp(shape.standard_normal(I))
    x = np.random.default_rng(seed).standard_t(5, (T, I)) @ mixing.T * power
    return (x / np.sqrt((x * x).mean())).astype(np.float32)


def weights(o: int, I: int) -> Array:
    return (0.02 * np.random.default_rng(1).standard_t(6, (o, I))).astype(np.float32)


def output_error(x: Array, weight: Array, rounded: Array) -> float:
    return float(((x @ (weight - rounded).T) ** 2).sum() / ((x @ weight.T) ** 2).sum())


def to_nearest(kind: formats.GroupFormat, weight: Array) -> Array:
    return formats.decoded(kind, kind.pack(weight), np.arange(len(weight)), weight.shape[1])


@pytest.mark.parametrize("weight_format", GROUPED)
@pytest.mark.parametrize("I", [256, 200])
def test_outputs_change_far_less_than_by_rounding_to_nearest(weight_format: str, I: int) -> None:
    kind, weight, x = formats.group_format(weight_format), weights(48, I), inputs(4 * I, I, 2)
    rounded = gptq.round_rows(weight, gptq.prepare(x, kind.GROUP, "w"), kind)
    plain = to_nearest(kind, weight)
    for seen, most in ((x, 0.4), (inputs(500, I, 3), 0.5)):
        assert output_error(seen, weight, rounded.weight) < most * output_error(seen, weight, plain)


@pytest.mark.parametrize("weight_format", GROUPED)
def test_stored_codes_and_scales_are_the_weights_that_were_promised(weight_format: str) -> None:
    kind, weight = formats.group_format(weight_format), weights(35, 200)
    rounded = gptq.round_rows(weight, gptq.prepare(inputs(300, 200, 2), kind.GROUP, "w"), kind)
    stored = kind.store(rounded.codes, rounded.scales)
    assert {key: (array.shape, array.dtype) for key, array in stored.items()} == {
        key: (shape, np.dtype(dtype)) for key, (shape, dtype) in kind.layout(35, 200).items()
    }
    np.testing.assert_array_equal(formats.decoded(kind, stored, np.arange(35), 200), rounded.weight)


@pytest.mark.parametrize("weight_format", GROUPED)
def test_inputs_without_correlations_are_not_rounded_worse_than_to_nearest(weight_format: str) -> None:
    kind, weight = formats.group_format(weight_format), weights(32, 256)
    x = np.random.default_rng(0).standard_normal((4096, 256)).astype(np.float32)
    rounded = gptq.round_rows(weight, gptq.prepare(x, kind.GROUP, "w"), kind)
    assert output_error(x, weight, rounded.weight) < output_error(x, weight, to_nearest(kind, weight))


def plain_sum(errors: Array, prepared: gptq.Inputs) -> float:
    """The sum of the module's first lines, column by column, in float64."""
    total = 0.0
    for k, pivot in enumerate(prepared.pivots.astype(np.float64)):
        owed = errors[:, k + 1 :] @ prepared.lower[k + 1 :, k].astype(np.float64)
        total += float(pivot * ((errors[:, k] + owed) ** 2).sum())
    return total


def test_factors_give_back_the_moments() -> None:
    x = inputs(400, 128, 2)
    prepared = gptq.prepare(x, 32, "w")
    unit = prepared.lower + np.eye(128)
    np.testing.assert_allclose((unit * prepared.pivots) @ unit.T, prepared.moments, rtol=1e-3, atol=1e-2)
    ordered = x[:, prepared.order]
    damping = np.diagonal(prepared.moments - ordered.T @ ordered)
    assert damping.min() > 0
    off_diagonal = ~np.eye(128, dtype=bool)
    np.testing.assert_allclose(prepared.moments[off_diagonal], (ordered.T @ ordered)[off_diagonal], rtol=1e-3, atol=0.1)


def test_sum_over_columns_is_the_error_of_the_outputs() -> None:
    prepared = gptq.prepare(inputs(400, 128, 2), 32, "w")
    errors = np.random.default_rng(0).standard_normal((5, 128))
    whole = float(np.einsum("ok,kj,oj", errors, prepared.moments.astype(np.float64), errors))
    assert abs(plain_sum(errors, prepared) / whole - 1) < 1e-4


@pytest.mark.parametrize(("I", "group"), [(256, 32), (256, 128), (200, 64), (40, 32), (1, 128)])
def test_groups_stay_together_and_the_most_powerful_are_rounded_first(I: int, group: int) -> None:
    power = np.random.default_rng(I).random(I) ** 4
    order = gptq._order(power, group)
    assert sorted(order) == list(range(-(-I // 128) * 128))
    groups = order.reshape(-1, group)
    assert (groups // group == groups[:, :1] // group).all()
    filled = np.pad(power, (0, len(order) - I))
    assert (np.diff(filled[groups].sum(axis=1)) >= 0).all()
    assert (np.diff(filled[groups], axis=1) >= 0).all()


def test_inputs_that_never_speak_leave_their_weights_rounded_to_nearest() -> None:
    kind, weight, x = formats.group_format("int4_g32"), weights(20, 128), inputs(400, 128, 2)
    x[:, [5, 77]] = 0
    rounded = gptq.round_rows(weight, gptq.prepare(x, 32, "w"), kind)
    for i in (5, 77):
        scale = rounded.scales[:, i // 32]
        np.testing.assert_array_equal(rounded.codes[:, i], np.clip(np.rint(weight[:, i] / scale), -8, 7))


def test_inputs_that_are_all_zero_give_weights_rounded_to_nearest() -> None:
    kind, weight = formats.group_format("int4_g32"), weights(20, 128)
    rounded = gptq.round_rows(weight, gptq.prepare(np.zeros((200, 128), np.float32), 32, "w"), kind)
    plain = to_nearest(kind, weight)
    assert ((weight - rounded.weight) ** 2).sum() < 1.02 * ((weight - plain) ** 2).sum()


def test_one_token_is_enough_to_go_on_with() -> None:
    kind, weight, x = formats.group_format("int4_g32"), weights(20, 128), inputs(1, 128, 2)
    rounded = gptq.round_rows(weight, gptq.prepare(x, 32, "w"), kind)
    assert output_error(x, weight, rounded.weight) < output_error(x, weight, to_nearest(kind, weight))


def test_inputs_of_which_one_outweighs_float32_are_factored_all_the_same() -> None:
    x = inputs(300, 128, 2)
    x[:, 64:] = x[:, :64]  # singular
    x[:, 7] *= 1e5
    prepared = gptq.prepare(x, 32, "w")
    assert np.isfinite(prepared.lower).all()
    assert prepared.pivots.min() > 0


@pytest.mark.parametrize("I", [128, 256, 200])
def test_solving_is_dividing_by_the_moments(I: int) -> None:
    prepared = gptq.prepare(inputs(3 * I, I, 2), 32, "w")
    there = np.flatnonzero(prepared.order < I)
    rows = np.zeros((5, len(prepared.order)), np.float32)
    rows[:, there] = np.random.default_rng(0).standard_normal((5, len(there)))
    solved = gptq._solve((rows @ prepared.moments).astype(np.float32), prepared)
    np.testing.assert_allclose(solved, rows, rtol=5e-3, atol=5e-3)


def test_rows_take_back_what_earlier_matrices_have_lost() -> None:
    kind, weight, exact = formats.group_format("int4_g32"), weights(20, 128), inputs(2000, 128, 2)
    seen = exact + 0.3 * inputs(2000, 128, 4)  # the inputs behind matrices that were rounded already
    wanted = exact @ weight.T
    prepared = gptq.prepare(seen, 32, "w")
    with_it = gptq.round_rows(weight, prepared, kind, (wanted - seen @ weight.T).T @ seen)
    without = gptq.round_rows(weight, prepared, kind)
    errors = [float(((wanted - seen @ rounded.weight.T) ** 2).sum()) for rounded in (with_it, without)]
    assert errors[0] < 0.9 * errors[1]


def test_moments_that_are_added_count_as_so_much_more_of_the_power() -> None:
    x, also = inputs(400, 128, 2), np.diag(np.arange(1, 129, dtype=np.float32))
    plain, more = gptq.prepare(x, 32, "w"), gptq.prepare(x, 32, "w", also)
    assert np.trace(more.moments) == pytest.approx((1 + gptq.ALSO) * np.trace(plain.moments), rel=0.05)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_inputs_that_are_not_finite_are_refused_by_name(value: float) -> None:
    x = inputs(200, 128, 2)
    x[3, 5] = value
    with pytest.raises(DataError, match=r"model: layers\.3\.qkv"):
        gptq.prepare(x, 32, "model: layers.3.qkv")


def test_rows_are_rounded_alike_in_any_slab_and_on_any_number_of_threads(on_threads: Any) -> None:
    kind, weight = formats.group_format("int4_g32"), weights(48, 128)
    prepared = gptq.prepare(inputs(400, 128, 2), 32, "w")

    def compute() -> tuple[Array, Array]:
        rounded = gptq.round_rows(weight, prepared, kind)
        return rounded.codes, rounded.scales

    codes, _ = on_threads(compute)
    halves = [gptq.round_rows(part, prepared, kind).codes for part in (weight[:16], weight[16:])]
    # NumPy's product may round another way for other numbers of rows, which turns a tie now and then.
    assert (np.concatenate(halves) == codes).mean() > 0.999


def test_more_tokens_are_trusted_more() -> None:
    few, many = (gptq.prepare(inputs(T, 128, 2), 32, "w") for T in (128, 4096))
    shares = []
    for prepared, T in ((few, 128), (many, 4096)):
        ordered = inputs(T, 128, 2)[:, prepared.order].astype(np.float64)
        power = (ordered * ordered).sum(axis=0)
        shares.append(float(np.mean(np.diagonal(prepared.moments) - power) / power.mean()))
    assert shares[0] > 2 * shares[1] > 0.005
