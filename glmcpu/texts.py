"""Text to measure a model with, or to calibrate it on: a file becomes sequences of ids, one at a time.

    JSONL        {"prompt": "今天天气怎么样", "response": "很好", "history": [["你好", "你好!"]]}     one object a line
    plain text   everything else

A file is JSONL when its name ends with .jsonl or .json or it begins with "{". Both are UTF-8. An example becomes what
the model was trained on, and a window of plain text takes the same form:

    chat prompt of history and prompt   [gMASK] <sop>   response <eop>
    first half of the window            [gMASK] <sop>   second half
                                                        ^ begin: from here on each id has to be predicted

Plain text is encoded in blocks of whole lines, with the ids it has as one text. Its last window is what is left; less
than half a window is left out. Reading needs memory for one line or block, however long the file is. Keys may have
other names where `examples` is given their Columns; further keys do not matter.
"""

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from glmcpu import limits
from glmcpu.errors import DataError, printable, shown
from glmcpu.files import open_regular
from glmcpu.strict_json import kind, parse_line
from glmcpu.tokenizers.chatglm import Tokenizer

LEAST_TOKENS = 4  # of plain text, so that two are scored
_BLOCK_CHARS = 1 << 16
_BOM = b"\xef\xbb\xbf"
_Path = str | os.PathLike[str]


@dataclass(frozen=True)
class Columns:
    """What the keys of a line are called; a line may be without the history. AdvertiseGen has content and summary."""

    prompt: str = "prompt"
    response: str = "response"
    history: str = "history"

    @property
    def form(self) -> str:
        """A line in short, for errors."""
        return f'{{{_key(self.prompt)}: "..", {_key(self.response)}: ".."}}'


COLUMNS = Columns()


@dataclass(frozen=True)
class Example:
    """A line of a JSONL file: the question, the answer, and the (question, answer) rounds before them."""

    prompt: str
    response: str
    history: tuple[tuple[str, str], ...]
    line: int


class Sequence(NamedTuple):
    """ids[begin:] are to be predicted from what stands before each; ids[begin - 1] is <sop>. `where` is for errors."""

    ids: list[int]
    begin: int
    where: str


def included() -> Path:
    """The text that comes with glmcpu, to calibrate on: short examples in Chinese and English."""
    return Path(__file__).with_name("calibration.jsonl")


def sequences(
    path: _Path, tokenizer: Tokenizer, window: int = 512, longest: int = limits.CONTEXT
) -> Iterator[Sequence]:
    """The examples of a JSONL file, or windows of `window` >= 2 ids of plain text, in order.

    Raises DataError with file and line, while it is read: no UTF-8, no JSON, not an example, a sequence of more than
    `longest` ids, a line of more than limits.INPUT_BYTES, no example at all, fewer than LEAST_TOKENS ids of text.
    """
    if not is_jsonl(path):
        yield from _windows(path, tokenizer, min(window, longest - 2))
        return
    for example in examples(path):
        where = _where(path, example.line)
        context = tokenizer.encode(tokenizer.chat_prompt(example.prompt, example.history))
        answer = tokenizer.encode(example.response, add_special_tokens=False)
        if not answer:
            raise DataError(f'{where}: "response" is empty to the tokenizer; expected an answer to score')
        ids = [*context, *answer, tokenizer.eos]
        if len(ids) > longest:
            raise DataError(
                f"{where}: {len(ids):,} tokens with prompt and history, and the model reads at most {longest:,}; "
                "shorten or split it"
            )
        yield Sequence(ids, len(context), where)


def is_jsonl(path: _Path) -> bool:
    """Whether a file is read as JSONL; raises DataError when there is none."""
    with _opened(path) as file:
        start = file.read(4096)
    return os.fspath(path).lower().endswith((".jsonl", ".json")) or start.removeprefix(_BOM).lstrip().startswith(b"{")


def examples(path: _Path, columns: Columns = COLUMNS) -> Iterator[Example]:
    """The examples of a JSONL file, blank lines left out; raises DataError as `sequences` does."""
    found = False
    for number, line in _lines(path):
        if line.strip():
            found = True
            where = _where(path, number)
            yield _example(parse_line(line.rstrip("\r\n").encode(), where, columns.form), columns, where, number)
    if not found:
        raise DataError(f"{shown(path)}: is empty; expected a line {columns.form} for each example")


def _example(value: dict[str, Any], columns: Columns, where: str, number: int) -> Example:
    for column in (columns.prompt, columns.response):
        if column not in value:
            has = printable(", ".join(value), 60) or "nothing"
            raise DataError(f"{where}: has no {_key(column)} but {has}; expected {columns.form}")
        if not isinstance(value[column], str):
            raise DataError(f"{where}: {_key(column)} is {kind(value[column])}; expected a text")
    prompt, response = value[columns.prompt], value[columns.response]
    if not response.strip():
        raise DataError(f"{where}: {_key(columns.response)} is empty; expected an answer to score")
    return Example(prompt, response, _history(value, columns.history, where), number)


def _history(value: dict[str, Any], column: str, where: str) -> tuple[tuple[str, str], ...]:
    history = value.get(column, [])
    rounds = history if isinstance(history, list) else [history]
    for n, pair in enumerate(rounds, 1):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            what = f"round {n} of it is {kind(pair)}" if rounds is history else f"is {kind(history)}"
            raise DataError(f'{where}: {_key(column)}: {what}; expected a list of ["question", "answer"]')
    return tuple((question, answer) for question, answer in rounds)


def _key(column: str) -> str:
    """A column's name for an error line."""
    return f'"{printable(column, 30)}"'


def _windows(path: _Path, tokenizer: Tokenizer, window: int) -> Iterator[Sequence]:
    newline = tokenizer.encode("\n", add_special_tokens=False)[-1]
    waiting: list[int] = []
    line, whole = 1, False
    for ids in _encoded(path, tokenizer):
        waiting += ids
        begin = 0
        while len(waiting) - begin >= window:
            part, whole = waiting[begin : begin + window], True
            yield _halves(part, tokenizer, _where(path, line))
            line += part.count(newline)
            begin += window
        del waiting[:begin]
    if not whole and len(waiting) < LEAST_TOKENS:
        raise DataError(
            f"{shown(path)}: holds {len(waiting)} tokens of text, and at least {LEAST_TOKENS} are needed; "
            "give a longer text"
        )
    if not whole or len(waiting) >= window / 2:
        yield _halves(waiting, tokenizer, _where(path, line))


def _halves(ids: list[int], tokenizer: Tokenizer, where: str) -> Sequence:
    half = len(ids) // 2
    return Sequence([*ids[:half], tokenizer.gmask, tokenizer.bos, *ids[half:]], half + 2, where)


def _encoded(path: _Path, tokenizer: Tokenizer) -> Iterator[list[int]]:
    """The ids of a text, block by block."""
    # A block behind the first begins with the line break before it, and with a blank that the whole text has not.
    blank = tokenizer.encode("\n", add_special_tokens=False)[:-1]
    lines: list[str] = []
    chars, drop = 0, 0
    for _, line in _lines(path):
        lines.append(line[:-2] + "\n" if line.endswith("\r\n") else line)
        chars += len(line)
        if chars >= _BLOCK_CHARS and line.endswith("\n"):
            yield tokenizer.encode("".join(lines)[:-1], add_special_tokens=False)[drop:]
            lines, chars, drop = ["\n"], 0, len(blank)
    yield tokenizer.encode("".join(lines), add_special_tokens=False)[drop:]


def _lines(path: _Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file with their numbers, line ends included."""
    with _opened(path) as file:
        number = 0
        while line := file.readline(limits.INPUT_BYTES + 1):
            number += 1
            if len(line) > limits.INPUT_BYTES:
                raise DataError(
                    f"{_where(path, number)}: longer than {limits.INPUT_BYTES:,} bytes; put line breaks into it"
                )
            yield number, _decoded(line.removeprefix(_BOM) if number == 1 else line, _where(path, number))


def _decoded(line: bytes, where: str) -> str:
    place = line.find(b"\0")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        place = error.start
    if place >= 0:
        raise DataError(f"{where}: byte {place + 1:,} is not UTF-8 text (0x{line[place]:02x}); save the file as UTF-8")
    return text


def _opened(path: _Path) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(open_regular(path)))


def _where(path: _Path, line: int) -> str:
    return f"{shown(path)}: line {line}"
