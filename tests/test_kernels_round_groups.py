"""The kernels that round blocks of columns, against loops that do one column of one row at a time."""

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from glmcpu.kernels.round_groups import improve_block, round_block

Array = NDArray[Any]
FORMATS = [(32, (-8, 7)), (64, (-8, 7)), (128, (-8, 7)), (32, (-4, 3)), (16, (-2, 1))]


def problem(o: int, B: int, seed: int = 0) -> tuple[Array, Array, Array, Array, Array]:
    """weight, what errors behind the block add to it, moments of correlated inputs, their factor."""
    random = np.random.default_rng(seed)
    mixing = np.eye(B) + 0.3 * random.standard_normal((B, B))
    x = (random.standard_normal((4 * B, B)) @ mixing).astype(np.float32)
    moments = x.T @ x
    factor = np.linalg.cholesky(moments)
    pivots = np.diagonal(factor).copy()
    lower = np.tril(factor / pivots, -1)
    weight = (0.02 * random.standard_t(5, (o, B))).astype(np.float32)
    owed = (0.002 * random.standard_normal((o, B))).astype(np.float32)
    return weight, weight + owed, moments, lower, pivots * pivots


def half(x: float) -> np.float32:
    return np.float32(np.float16(x))


def code_of(x: Any, scale: Any, ends: tuple[int, int]) -> Any:
    return np.clip(np.rint(np.float32(x) / np.float32(scale)), *ends) if scale else np.float32(0)


def in_turn(weight: Array, updated: Array, lower: Array, scale: Any, ends: tuple[int, int]) -> tuple[Array, Array]:
    """Codes of one group of one row, and what is left of each column after its code."""
    values, codes = updated.astype(np.float32).copy(), np.zeros(len(weight), np.float32)
    for k in reversed(range(len(weight))):
        codes[k] = code_of(values[k], scale, ends)
        values[:k] += (weight[k] - codes[k] * scale) * lower[k, :k]
    return codes, values - codes * scale


def plain_round(
    weight: Array, updated: Array, lower: Array, pivots: Array, group: int, ends: tuple[int, int]
) -> tuple[Array, Array]:
    """round_block, by its definition."""
    codes, scales = np.zeros(weight.shape), np.zeros((len(weight), weight.shape[1] // group), np.float32)
    candidates = np.concatenate([1 / (end * np.linspace(0.65, 1.4, 16)) for end in ends])
    for r, row in enumerate(updated.astype(np.float32).copy()):
        for at in reversed(range(0, weight.shape[1], group)):
            here = slice(at, at + group)
            w, v, l, d = weight[r, here], row[here], lower[here, here], pivots[here]
            largest = v[np.abs(v).argmax()]
            if abs(largest) > 1e-7:
                losses = [(in_turn(w, v, l, largest * c, ends)[1] ** 2 @ d) for c in candidates]
                best = largest * candidates[int(np.argmin(losses))]
                found, _ = in_turn(w, v, l, best, ends)
                made, target = found + found @ l, v + w @ l
                scales[r, at // group] = half((d * target * made).sum() / (d * made * made).sum())
            codes[r, here], _ = in_turn(w, v, l, scales[r, at // group], ends)
            row[:at] += (w - codes[r, here] * scales[r, at // group]) @ lower[here, :at]
    return codes, scales


def rounded(
    weight: Array, updated: Array, lower: Array, pivots: Array, group: int, ends: tuple[int, int]
) -> tuple[Array, Array, Array]:
    o, B = weight.shape
    codes, scales = np.zeros((o, B), np.int8), np.zeros((o, B // group), np.float32)
    errors = np.zeros((o, B), np.float32)
    round_block(codes, scales, errors, weight, updated.copy(), lower, pivots, 0, group, ends)
    return codes, scales, errors


def cost(errors: Array, owed: Array, lower: Array, pivots: Array) -> float:
    """What round_block makes small."""
    return float((((errors + owed + errors @ lower) ** 2) @ pivots).sum())


@pytest.mark.parametrize(("group", "ends"), FORMATS)
def test_block_is_rounded_as_column_by_column(group: int, ends: tuple[int, int]) -> None:
    weight, updated, _, lower, pivots = problem(12, 128)
    codes, scales, errors = rounded(weight, updated, lower, pivots, group, ends)
    plain_codes, plain_scales = plain_round(weight, updated, lower, pivots, group, ends)
    # Sums in another order may turn a tie, and then what follows.
    assert (codes == plain_codes).mean() > 0.97
    plain_errors = weight - plain_codes * np.repeat(plain_scales, group, axis=1)
    ours, theirs = (cost(e, updated - weight, lower, pivots) for e in (errors, plain_errors))
    assert abs(ours / theirs - 1) < 0.02
    np.testing.assert_allclose(errors, weight - codes * np.repeat(scales, group, axis=1), atol=1e-7)


@pytest.mark.parametrize(("group", "ends"), FORMATS)
def test_codes_stay_within_their_ends_and_scales_are_halves(group: int, ends: tuple[int, int]) -> None:
    weight, updated, _, lower, pivots = problem(33, 128)
    weight[3], weight[4, :5] = 0, 30000
    codes, scales, _ = rounded(weight, updated, lower, pivots, group, ends)
    assert codes.min() >= ends[0]
    assert codes.max() <= ends[1]
    assert np.array_equal(scales, scales.astype(np.float16).astype(np.float32))


def test_group_without_weights_has_scale_and_codes_zero() -> None:
    weight, _, _, lower, pivots = problem(2, 128)
    weight[:, 96:] = 0
    codes, scales, errors = rounded(weight, weight, lower, pivots, 32, (-8, 7))
    assert not scales[:, 3].any()
    assert not codes[:, 96:].any()
    assert not errors[:, 96:].any()


@pytest.mark.parametrize(("group", "ends"), FORMATS)
def test_each_sweep_makes_the_error_smaller_or_leaves_it(group: int, ends: tuple[int, int]) -> None:
    weight, _, moments, lower, pivots = problem(20, 128)
    codes, scales, errors = rounded(weight, weight, lower, pivots, group, ends)
    losses = [float(np.einsum("ok,kj,oj", errors, moments, errors))]
    for _ in range(3):
        improve_block(codes, scales, errors, errors @ moments, moments, 0, group, ends)
        np.testing.assert_allclose(errors, weight - codes * np.repeat(scales, group, axis=1), atol=1e-6)
        losses.append(float(np.einsum("ok,kj,oj", errors, moments, errors)))
    assert losses[1] < losses[0]
    assert all(after <= before * (1 + 1e-4) for before, after in itertools.pairwise(losses))
    assert codes.min() >= ends[0]
    assert codes.max() <= ends[1]


def test_no_single_code_can_be_moved_to_a_smaller_error_after_many_sweeps() -> None:
    weight, _, moments, lower, pivots = problem(3, 64)
    codes, scales, errors = rounded(weight, weight, lower, pivots, 32, (-8, 7))
    for _ in range(30):
        improve_block(codes, scales, errors, errors @ moments, moments, 0, 32, (-8, 7))
    wide = np.repeat(scales, 32, axis=1).astype(np.float64)
    for r in range(len(weight)):
        e = weight[r] - codes[r] * wide[r]
        least = e @ moments @ e
        for k in range(64):
            for step in (-1, 1):
                if -8 <= codes[r, k] + step <= 7:
                    moved = e.copy()
                    moved[k] -= step * wide[r, k]
                    assert moved @ moments @ moved >= least * (1 - 1e-4)


def test_block_in_the_middle_touches_its_own_columns_only() -> None:
    weight, _, _, lower, pivots = problem(5, 64)
    wide = np.concatenate([weight] * 3, axis=1)
    codes, scales = np.full((5, 192), 99, np.int8), np.full((5, 6), 99, np.float32)
    errors = np.full((5, 192), 99, np.float32)
    round_block(codes, scales, errors, wide, weight.copy(), lower, pivots, 64, 32, (-8, 7))
    alone = rounded(weight, weight, lower, pivots, 32, (-8, 7))
    for ours, theirs, width in zip((codes, scales, errors), alone, (64, 2, 64), strict=True):
        assert np.array_equal(ours[:, width : 2 * width], theirs)
        assert (np.delete(ours, slice(width, 2 * width), axis=1) == 99).all()


def test_result_depends_on_neither_threads_nor_other_rows(on_threads: Any) -> None:
    weight, updated, moments, lower, pivots = problem(37, 128)

    def compute() -> tuple[Array, ...]:
        codes, scales, errors = rounded(weight, updated, lower, pivots, 32, (-8, 7))
        improve_block(codes, scales, errors, errors @ moments, moments, 0, 32, (-8, 7))
        return codes, scales, errors

    on_threads(compute)
    alone = rounded(weight[5:6], updated[5:6], lower, pivots, 32, (-8, 7))
    together = rounded(weight, updated, lower, pivots, 32, (-8, 7))
    assert all(np.array_equal(one[0], many[5]) for one, many in zip(alone, together, strict=True))
