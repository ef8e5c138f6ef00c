"""convert(bits=...): a budget of bits goes where it takes most error away."""

from collections import Counter
from pathlib import Path

import pytest
from tiny_checkpoint import write_checkpoint

from glmcpu import cli, formats, packed
from glmcpu.convert import convert, mixed
from glmcpu.errors import UsageError
from glmcpu.packed import PackedFile

SIZES = {"a": 1000, "b": 1000, "c": 4000}
# What rounding costs with each bit less, times how much a matrix matters.
ERRORS = {
    name: {form: matters * 4.0 ** -mixed.bits_of(form) for form in mixed.CANDIDATES}
    for name, matters in {"a": 1.0, "b": 100.0, "c": 10.0}.items()
}


def bits(chosen: dict[str, str]) -> float:
    return sum(mixed.bits_of(form) * SIZES[name] for name, form in chosen.items()) / sum(SIZES.values())


@pytest.mark.parametrize("budget", [3.5, 3.6, 4.0, 4.25, 4.5, 5.0, 6.5, 8.0])
def test_a_budget_is_kept_and_used(budget: float) -> None:
    chosen = mixed.choose(ERRORS, SIZES, budget)
    assert bits(chosen) <= budget
    smallest_step = min(
        (mixed.bits_of(better) - mixed.bits_of(form)) * SIZES[name]
        for name, form in chosen.items()
        for better in [*mixed.CANDIDATES, "f32"]
        if mixed.bits_of(better) > mixed.bits_of(form)
    )
    assert budget * sum(SIZES.values()) - bits(chosen) * sum(SIZES.values()) < smallest_step


def test_the_matrix_that_hurts_gets_the_bits() -> None:
    chosen = mixed.choose(ERRORS, SIZES, 4.2)
    assert mixed.bits_of(chosen["b"]) > max(mixed.bits_of(chosen[name]) for name in ("a", "c"))


def test_more_bits_never_give_more_error() -> None:
    totals = []
    for tenths in range(42, 81):
        chosen = mixed.choose(ERRORS, SIZES, tenths / 10)
        totals.append(sum(ERRORS[name][form] for name, form in chosen.items()))
    assert totals == sorted(totals, reverse=True)


def test_formats_that_take_no_error_away_are_not_paid_for() -> None:
    flat = {name: dict.fromkeys(mixed.CANDIDATES, 1.0) for name in SIZES}
    assert set(mixed.choose(flat, SIZES, 8.0).values()) == {"int4_g128"}


def test_three_bits_are_taken_only_where_the_budget_leaves_no_choice() -> None:
    assert "int3_g32" in mixed.choose(ERRORS, SIZES, 4.1).values()
    assert "int3_g32" not in mixed.choose(ERRORS, SIZES, 4.125).values()


def test_candidates_rise_in_bits() -> None:
    known = [mixed.bits_of(form) for form in mixed.CANDIDATES]
    assert known == sorted(known)
    assert set(mixed.CANDIDATES) <= set(formats.names())


@pytest.mark.parametrize("calibrate", [None, "included"])
def test_a_mixed_model_is_whole_and_within_its_bits(calibrate: str | None, tmp_path: Path) -> None:
    source, target = write_checkpoint(tmp_path / "source"), tmp_path / "mixed.safetensors"
    convert(source, target, bits=5, calibrate=calibrate, calibration_tokens=1024)
    file = packed.verify(target)
    assert file.contents.weights == "5bits"
    assert len(Counter(file.formats.values())) > 1
    assert file.contents.source["calibration"]["tokens"] > 128
    again = tmp_path / "again.safetensors"
    convert(source, again, bits=5, calibrate=calibrate, calibration_tokens=1024)
    assert again.read_bytes() == target.read_bytes()


def test_errors_fall_with_the_bits_of_a_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[mixed.Errors] = []
    choose = mixed.choose
    monkeypatch.setattr(mixed, "choose", lambda errors, *rest: (seen.append(errors), choose(errors, *rest))[1])
    target = convert(write_checkpoint(tmp_path / "source"), tmp_path / "mixed.safetensors", bits=4)
    assert seen[0].keys() == PackedFile(target).formats.keys()
    for errors in seen[0].values():
        assert 0 < errors["int8"] < errors["int4_g32"] < errors["int3_g32"] < 1


@pytest.mark.parametrize("wrong", [0, 3.4, 8.1, 100, float("nan")])
def test_a_budget_out_of_range_is_refused(wrong: float, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--bits .*: mixtures of int3_g32 .* have 3.5 to 8 bits"):
        convert(tmp_path, tmp_path / "mixed.safetensors", bits=wrong)


def test_bits_and_weights_contradict_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["convert", str(tmp_path), "--bits", "4.25", "--weights", "int8"]) == 2
    assert "--bits 4.25 chooses a format for each matrix, and --weights int8 for all" in capsys.readouterr().err
