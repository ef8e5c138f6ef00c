"""The kinds of failure, and what may stand in their messages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import glmcpu
from glmcpu import errors
from glmcpu.errors import printable


@pytest.mark.parametrize(
    ("kind", "code", "builtin"),
    [
        ("GlmcpuError", 1, Exception),
        ("UsageError", 2, ValueError),
        ("DataError", 3, ValueError),
        ("MachineError", 4, OSError),
        ("NetworkError", 5, OSError),
    ],
)
def test_every_kind_has_its_exit_code_and_is_what_a_caller_would_catch(
    kind: str, code: int, builtin: type[Exception]
) -> None:
    error = getattr(glmcpu, kind)
    assert error is getattr(errors, kind)
    assert error.exit_code == code
    assert issubclass(error, errors.GlmcpuError)
    assert issubclass(error, builtin)
    assert str(error("weights.bin: 3 bytes")) == "weights.bin: 3 bytes"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("模型.safetensors", "模型.safetensors"),
        ("a\x1b[31mred", "a\\x1b[31mred"),
        ("two\nlines\r\t", "two\\nlines\\r\\t"),
        ("abc\u202egpj", "abc\\u202egpj"),
        ("bad \udc80 byte", "bad \\udc80 byte"),
        ("\x00\x7f\x9b", "\\x00\\x7f\\x9b"),
        (12, "12"),
        ("", ""),
    ],
)
def test_what_could_write_to_the_terminal_is_escaped(text: object, shown: str) -> None:
    assert printable(text) == shown


def test_long_text_is_cut_with_a_mark() -> None:
    assert printable("x" * 120) == "x" * 120
    assert printable("x" * 121) == "x" * 119 + "…"
    assert printable("x" * 50, 10) == "x" * 9 + "…"


@given(st.text(), st.integers(1, 50))
def test_any_text_becomes_printable_and_short(text: str, limit: int) -> None:
    shown = printable(text, limit)
    assert shown.isprintable()
    assert len(shown) <= limit
    shown.encode("utf-8")
