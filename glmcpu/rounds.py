"""The rounds of a conversation: checked, made into a prompt that fits, saved and read back.

A round is (question, answer). When a conversation outgrows the context, its oldest whole rounds stay out of the prompt:

    | system preface | round 0 | round 1 | round 2 | question |        too long
    | system preface |                     round 2 | question | .. room for the answer .. |

never half a round, never the preface. What is left out is a number the caller gets, and must tell the user.
"""

import bisect
import json
import os
from collections.abc import Sequence
from typing import Any, Protocol

from glmcpu import files, limits, strict_json
from glmcpu.errors import DataError, UsageError, printable, shown
from glmcpu.tokenizers.chatglm import without_surrogates

Round = tuple[str, str]

ANSWER_ROOM = 256  # tokens of the context that a prompt leaves free, at most a quarter of the context


class TextModel(Protocol):
    """What a prompt needs of a model: `tokenizer` is a Tokenizer, or None when the model's file holds none."""

    @property
    def context(self) -> int: ...
    @property
    def tokenizer(self) -> Any: ...


def fit_prompt(
    model: TextModel,
    query: str,
    rounds: Sequence[Round],
    *,
    preface: Sequence[Round] = (),
    max_length: int | None = None,
    max_new_tokens: int | None = None,
) -> tuple[list[int], int]:
    """The prompt's ids and how many of the oldest `rounds` were left out so that an answer has room.

    Free for the answer: ANSWER_ROOM tokens of the context, a quarter of a small one, less when `max_new_tokens` is
    less. `max_length`, the official bound, leaves one token at least: an answer is cut there as officially. Raises
    UsageError when the question does not fit even alone.
    """
    room = min(ANSWER_ROOM, model.context // 4, max_new_tokens or ANSWER_ROOM)
    longest = min(model.context - room, (max_length or model.context) - 1)

    def prompt(dropped: int) -> list[int]:
        text = model.tokenizer.chat_prompt(query, [*preface, *rounds[dropped:]])
        return list(model.tokenizer.encode(text))

    dropped = bisect.bisect_left(range(len(rounds)), True, key=lambda n: len(prompt(n)) <= longest)
    ids = prompt(dropped)
    if len(ids) > longest:
        raise UsageError(
            f"the question alone is {len(ids):,} tokens long and a prompt may have {longest:,} "
            f"(context {model.context:,}, {room:,} of them kept for the answer); shorten it, or raise the context"
        )
    return ids, dropped


def require_tokenizer(model: TextModel) -> None:
    """Raises DataError when the model's file holds no tokenizer."""
    if model.tokenizer is None:
        raise DataError(
            f"{shown(getattr(model, 'path', 'this model'))}: holds no tokenizer, so it understands ids and no "
            "text; convert it again with --tokenizer ice_text.model"
        )


def check_text(text: object, what: str) -> str:
    """`text` when it is text of a sensible length, half characters replaced; raises UsageError otherwise."""
    if not isinstance(text, str):
        raise UsageError(f"{what} must be text and is {type(text).__name__}; give a str")
    whole = without_surrogates(text)
    size_bytes = len(whole.encode())
    if size_bytes > limits.INPUT_BYTES:
        raise UsageError(f"{what}: {size_bytes:,} bytes, and at most {limits.INPUT_BYTES:,} are read; shorten it")
    return whole


def check_history(history: object) -> list[Round]:
    """A list of (question, answer) pairs; raises UsageError naming the entry that is none."""
    if not isinstance(history, (list, tuple)):
        raise UsageError(f"history is {type(history).__name__}; give a list of (question, answer) pairs")
    rounds = []
    for n, pair in enumerate(history):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise UsageError(f"history[{n}] is {printable(repr(pair), 40)}; give a (question, answer) pair of texts")
        rounds.append((check_text(pair[0], f"history[{n}][0]"), check_text(pair[1], f"history[{n}][1]")))
    return rounds


def write_conversation(path: str | os.PathLike[str], system: str | None, history: Sequence[Round]) -> None:
    """Writes a conversation as JSON, whole or not at all; raises MachineError when the system refuses."""
    document = {"glmcpu_conversation": 1, "system": system, "history": history}
    files.write_text(path, json.dumps(document, ensure_ascii=False, indent=1) + "\n")


def read_conversation(path: str | os.PathLike[str]) -> tuple[str | None, list[Round]]:
    """(system text, history) of a file written by ChatSession.save; raises DataError when it is not one."""
    name = shown(path)
    document = strict_json.parse(files.read_bytes(path, limits.CONVERSATION_BYTES), name)
    if not isinstance(document, dict) or document.get("glmcpu_conversation") != 1:
        raise DataError(f"{name}: is no conversation saved by glmcpu; name a file written by /save")
    system = document.get("system")
    try:
        history = check_history(document.get("history"))
        return system and check_text(system, "system"), history
    except UsageError as error:
        raise DataError(f"{name}: {error}") from error
