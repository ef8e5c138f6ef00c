"""JSON from a stranger: the standard parser behind the checks it leaves out.

The standard library takes the last of two equal keys, NaN, lone surrogates and numbers of any length in silence, and
answers deep nesting with RecursionError. A file that two readers understand differently is refused here, and every
bound is checked on the bytes, before the first object is built.
"""

import json
import math
import re
from typing import Any

from glmcpu import limits
from glmcpu.errors import DataError, printable, shown

_PAIR = re.compile(rb"\\u[dD][89abAB]..\\u[dD][c-fC-F]..", re.DOTALL)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_NOT_BRACKETS = bytes(c for c in range(256) if c not in b"[]{}")
_INTEGER_CHARS = 20  # 2**64 - 1
_REAL_CHARS = 64


def parse(data: bytes, what: str, remedy: str = "get the file again") -> Any:
    """The value of one JSON text: dict, list, str, int, float, bool or None.

    Raises DataError, which begins with `what` (the file's name) and advises `remedy`, for anything but plain UTF-8
    JSON: a byte order mark, a key given twice, NaN or Infinity, half a surrogate pair, an integer of more than 20
    digits, deeper than limits.JSON_DEPTH, more than limits.JSON_TOKENS quotes, commas and brackets.
    """
    what = shown(what)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{what}: not UTF-8 at byte {error.start:,}; expected JSON text, {remedy}") from error
    try:
        _check_structure(data)
        return json.loads(
            text,
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_float=_real,
            parse_constant=_constant,
        )
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise DataError(f"{what}: not valid JSON at {place} ({error.msg}); {remedy}") from error
    except ValueError as error:
        raise DataError(f"{what}: {error}") from error


def parse_line(line: bytes, where: str, form: str) -> dict[str, Any]:
    """The object in one line of a JSONL file, its line end left out.

    Raises DataError as `parse` does, beginning with `where` and saying that `form` was expected.
    """
    try:
        value = parse(line, where)
    except DataError as error:
        cause = error.__cause__
        if isinstance(cause, json.JSONDecodeError):  # which counts the lines anew
            raise DataError(
                f"{where}: not valid JSON at column {cause.colno:,} ({cause.msg}); expected {form}, one object a line"
            ) from error
        if isinstance(cause, UnicodeDecodeError):
            place = cause.start
            raise DataError(
                f"{where}: byte {place + 1:,} is not UTF-8 text (0x{line[place]:02x}); save the file as UTF-8"
            ) from error
        raise
    if not isinstance(value, dict):
        raise DataError(f"{where}: is {kind(value)}; expected an object {form}")
    return value


def kind(value: Any) -> str:
    """What a JSON value is, for an error line."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, list):
        return f"a list of {len(value):,}"
    if isinstance(value, dict):
        return "an object"
    return "a text" if isinstance(value, str) else "a number"


def _check_structure(data: bytes) -> None:
    """Counts values and measures depth; all passes are C loops over the bytes, so hostile text costs milliseconds."""
    tokens = sum(map(data.count, (b'"', b",", b"[", b"]", b"{", b"}")))
    if tokens > limits.JSON_TOKENS:
        raise ValueError(f"{tokens:,} JSON marks, and at most {limits.JSON_TOKENS:,} are accepted")
    bare = data.replace(b"\\\\", b"__").replace(b'\\"', b"__")
    if _SURROGATE.search(_PAIR.sub(b"", bare)):
        raise ValueError("holds half a surrogate pair; expected whole Unicode characters")
    outside_strings = b"".join(bare.split(b'"')[::2])
    depth = 0
    for bracket in outside_strings.translate(None, _NOT_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        if depth > limits.JSON_DEPTH:
            raise ValueError(f"JSON nested deeper than {limits.JSON_DEPTH} levels; expected a plain table")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"duplicate key '{printable(twice, 80)}'; expected every key once")
    return table


def _integer(text: str) -> int:
    # "-0" is a float for other parsers of the same file.
    if len(text) > _INTEGER_CHARS or text == "-0":
        raise ValueError(f"number {printable(text, 40)} is out of range; expected at most {_INTEGER_CHARS} digits")
    return int(text)


def _real(text: str) -> float:
    value = float(text) if len(text) <= _REAL_CHARS else math.inf
    if not math.isfinite(value):
        raise ValueError(f"number {printable(text, 40)} is out of range; expected a finite float")
    return value


def _constant(text: str) -> float:
    raise ValueError(f"holds {text}; expected finite numbers")
