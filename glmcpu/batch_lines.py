"""What a line of a batch's input asks for: JSON becomes a request, or an error that says what is wrong with the line.

    {"prompt": "你好"}
    {"prompt": "那里有什么", "history": [["杭州在哪", "在浙江"]], "id": "a7", "temperature": 0, "max_new_tokens": 50}

Beside "prompt" a line may have "history", "system", "stop" (a text, or a list of them), "id" (a text or a number, found
again in the answer) and the sampling options by their names; null is as if the key were not there. An unknown key is an
error: a typing error in "temperature" would else be an answer that looks right.
"""

import dataclasses
import difflib
import hashlib
import io
import itertools
import os
from collections.abc import Iterator
from typing import Any

from glmcpu import limits, strict_json
from glmcpu.chat import SYSTEM_ANSWER, check_count
from glmcpu.errors import DataError, UsageError, printable
from glmcpu.files import open_regular
from glmcpu.rounds import TextModel, check_history, check_text, fit_prompt
from glmcpu.sampling import Sampler

SAMPLING = (
    *("temperature", "top_p", "top_k", "repetition_penalty", "seed"),
    *("presence_penalty", "frequency_penalty"),
)
KEYS = ("prompt", "history", "system", "id", "max_new_tokens", *SAMPLING, "stop")
FORM = '{"prompt": ".."}'
_BOM = b"\xef\xbb\xbf"
_READ_BYTES = limits.INPUT_BYTES + len(b"\r\n") + 1  # of a line: one more than it may have


@dataclasses.dataclass(frozen=True)
class Options:
    """What holds for each line that does not say otherwise; with a seed, line n is drawn with seed + n."""

    sampler: Sampler = dataclasses.field(default_factory=Sampler)
    max_new_tokens: int | None = None  # None: what the context leaves
    system: str | None = None


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of the input without its line end. Of one that is too long `data` is the beginning, `digest` of it all."""

    number: int
    data: bytes
    digest: str


@dataclasses.dataclass(frozen=True)
class Request:
    """What the engine is given; `dropped_rounds` of the history did not fit."""

    ids: list[int]
    sampler: Sampler
    max_new_tokens: int
    stop: list[str]
    dropped_rounds: int


def lines(path: str | os.PathLike[str]) -> Iterator[Line]:
    """The lines of a file that are not blank, one at a time; raises DataError when there is no such file."""
    with io.BufferedReader(open_regular(path)) as file:
        for number in itertools.count(1):
            part = file.readline(_READ_BYTES)
            if not part:
                return
            data = part.removeprefix(_BOM if number == 1 else b"").rstrip(b"\r\n")
            digest = hashlib.sha256(data)
            while len(part) == _READ_BYTES and not part.endswith(b"\n"):
                part = file.readline(_READ_BYTES)
                digest.update(part.rstrip(b"\r\n"))
            if data.strip():
                yield Line(number, data, digest.hexdigest()[:16])


def parse(line: Line) -> dict[str, Any]:
    """The JSON object of a line, without the keys that are null; raises DataError when it is none."""
    if len(line.data) > limits.INPUT_BYTES:
        raise DataError(f"longer than {limits.INPUT_BYTES:,} bytes, the most that is read of a line; shorten it")
    where = f"line {line.number}"
    try:
        value = strict_json.parse_line(line.data, where, FORM)
    except DataError as error:
        raise DataError(str(error).removeprefix(f"{where}: ")) from error
    return {key: part for key, part in value.items() if part is not None}


def identity(asked: dict[str, Any]) -> dict[str, Any]:
    """The "id" of a line as a part of its answer; raises DataError when it is no text or number."""
    if isinstance(asked.get("id"), (dict, list)):
        raise DataError(f'"id" is {strict_json.kind(asked["id"])}; expected a text or a number')
    return {"id": asked["id"]} if "id" in asked else {}


def request(asked: dict[str, Any], number: int, model: TextModel, options: Options) -> Request:
    """What line `number` asks for; raises DataError or UsageError for what is wrong with it."""
    for key in asked:
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, 1)
            hint = f'did you mean "{near[0]}"? ' if near else ""
            raise DataError(f'unknown key "{printable(key, 40)}"; {hint}known: {", ".join(KEYS)}')
    if "prompt" not in asked:
        raise DataError(f'has no "prompt"; expected {FORM}')
    question = check_text(asked["prompt"], "prompt")
    if not question.strip():
        raise DataError('"prompt" is empty; expected a question')
    system = check_text(asked.get("system", options.system or ""), "system")
    longest = asked.get("max_new_tokens", options.max_new_tokens)
    ids, dropped = fit_prompt(
        model,
        question,
        check_history(asked.get("history", [])),
        preface=[(system, SYSTEM_ANSWER)] if system else [],
        max_new_tokens=None if longest is None else check_count(longest, "max_new_tokens"),
    )
    room = model.context - len(ids)
    return Request(ids, _sampler(asked, number, options), min(room, longest or room), _stop(asked), dropped)


def _sampler(asked: dict[str, Any], number: int, options: Options) -> Sampler:
    own = {name: asked[name] for name in SAMPLING if name in asked}
    if "seed" not in own and options.sampler.seed is not None:
        own["seed"] = options.sampler.seed + number
    return dataclasses.replace(options.sampler, **own)


def _stop(asked: dict[str, Any]) -> list[str]:
    stop = asked.get("stop", [])
    texts = [stop] if isinstance(stop, str) else stop
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise UsageError(f"stop is {printable(repr(stop), 40)}; give a text, or a list of texts, none of them empty")
    return texts
