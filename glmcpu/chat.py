"""A conversation: rounds of question and answer, a prompt made of them that fits, an answer in pieces.

    history + question --chat_prompt--> text --encode--> ids --generate--> tokens --TextStream--> pieces of characters

Generation 1 sees the whole prompt at once, so every round reads the whole conversation again; nothing is kept between
rounds but the text. When the prompt leaves too little of the context for an answer, the oldest whole rounds stay out of
it (never half a round, never the system preface) and a ContextWarning says so; `history` itself keeps them.

The model knows no system role. `system` is emulated: a first round with that text as the question and a short fixed
answer, which the model mostly follows. `chat` and `stream_chat` are the official functions' behaviour, except that an
answer which ends at max_length keeps its last token.
"""

import collections
import dataclasses
import difflib
import os
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Protocol

from glmcpu import limits
from glmcpu.errors import ContextWarning, UsageError, printable
from glmcpu.rounds import (
    Round,
    TextModel,
    check_history,
    check_text,
    fit_prompt,
    read_conversation,
    require_tokenizer,
    write_conversation,
)
from glmcpu.sampling import Sampler
from glmcpu.tokenizers.prompt import process_response
from glmcpu.tokenizers.streaming import TextStream

Progress = Callable[[int, int], None]

SYSTEM_ANSWER = "好的。"
OFFICIAL_OPTIONS: dict[str, Any] = {
    "max_length": 2048,
    "num_beams": 1,
    "do_sample": True,
    "top_p": 0.7,
    "temperature": 0.95,
    "logits_processor": None,
    "top_k": 50,
    "repetition_penalty": 1.0,
    "seed": None,
    "max_new_tokens": None,
    "lookup": True,
}


class ChatToken(Protocol):
    """What an answer needs of a generated token."""

    @property
    def id(self) -> int: ...
    @property
    def finish_reason(self) -> str | None: ...
    @property
    def draft(self) -> int | None: ...


class ChatModel(TextModel, Protocol):
    """What a conversation needs of a model."""

    def generate(
        self,
        ids: Sequence[int],
        *,
        sampler: Sampler | None = None,
        max_new_tokens: int = 512,
        progress: Progress | None = None,
        lookup: bool = True,
    ) -> Iterator[ChatToken]: ...


@dataclasses.dataclass
class Stats:
    """The figures of one answer; they grow while it is being generated."""

    prompt_tokens: int = 0
    answer_tokens: int = 0
    prompt_s: float = 0.0  # until the first token
    answer_s: float = 0.0  # from the first token to the last
    finish_reason: str | None = None  # "stop", "length", or None while running and after an interruption
    dropped_rounds: int = 0  # oldest rounds that were not part of the prompt
    lookup: bool = False  # whether drafts were read along
    drafts: int = 0  # tokens of the answer that were drafted, rightly or not
    accepted: int = 0  # rightly
    partial: bool = False  # interrupted: the answer in the history is a beginning

    @property
    def prompt_tokens_per_s(self) -> float:
        return self.prompt_tokens / self.prompt_s if self.prompt_s else 0.0

    @property
    def answer_tokens_per_s(self) -> float:
        return (self.answer_tokens - 1) / self.answer_s if self.answer_s else 0.0


class ChatSession:
    """One conversation with one model.

    history   list of (question, answer), oldest first; yours to read and to change
    sampler   the Sampler of the next answer; its seed fixes the whole session (answer k is drawn with seed + k)
    lookup    whether the next answer guesses ahead from what was said before; it changes the speed, not the words
    last      Stats of the newest answer, None before the first
    """

    def __init__(
        self,
        model: ChatModel,
        *,
        sampler: Sampler | None = None,
        max_new_tokens: int | None = None,
        system: str | None = None,
        lookup: bool = True,
    ) -> None:
        """`max_new_tokens` bounds each answer (None: what the context leaves). Raises DataError without a tokenizer."""
        require_tokenizer(model)
        self.model = model
        self.sampler = sampler or Sampler()
        self.max_new_tokens = None if max_new_tokens is None else check_count(max_new_tokens, "max_new_tokens")
        self.system = system and check_text(system, "system")
        self.lookup = lookup
        self.history: list[Round] = []
        self.last: Stats | None = None
        self._answers = 0

    def say(self, text: str, *, progress: Progress | None = None) -> Generator[str, None, None]:
        """The answer in pieces of whole characters; after the last one the round is in `history`.

        Closed or interrupted, it keeps the answer so far as a round and sets `last.partial`; before the first piece
        it leaves `history` as it was. `progress(layers done, layers)` is called while the prompt is read.
        Raises UsageError when `text` alone is longer than a prompt may be.
        """
        return self._start(check_text(text, "question"), self.history, progress)

    def retry(self, *, progress: Progress | None = None) -> Generator[str, None, None]:
        """Asks the newest question again; the new answer takes the place of the old one."""
        if not self.history:
            raise UsageError("there is no question yet to ask again; ask one first")
        return self._start(self.history[-1][0], self.history[:-1], progress)

    def undo(self) -> Round:
        """Takes the newest round away and returns it; raises UsageError when there is none."""
        if not self.history:
            raise UsageError("there is no round to take back; the conversation is empty")
        return self.history.pop()

    def clear(self) -> None:
        """Forgets all rounds; sampler and system text stay, and a seed starts anew."""
        self.history = []
        self.last = None
        self._answers = 0

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes system text and history as JSON, whole or not at all; raises MachineError when it cannot."""
        write_conversation(path, self.system, self.history)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Takes system text and history from a file of `save`; raises DataError when it is not one."""
        system, history = read_conversation(path)
        self.clear()
        self.system, self.history = system, history

    def _start(self, query: str, before: list[Round], progress: Progress | None) -> Generator[str, None, None]:
        preface = [(self.system, SYSTEM_ANSWER)] if self.system else []
        known = self.last.dropped_rounds if self.last else 0
        ids, dropped = fit_prompt(self.model, query, before, preface=preface, max_new_tokens=self.max_new_tokens)
        if dropped > known:
            _warn_dropped(dropped, len(before), self.model.context)
        self.last = Stats(prompt_tokens=len(ids), dropped_rounds=dropped, lookup=self.lookup)
        sampler = self.sampler
        if sampler.seed is not None:
            sampler = dataclasses.replace(sampler, seed=sampler.seed + self._answers)
        self._answers += 1
        room = self.model.context - len(ids)
        pieces = _pieces(self.model, ids, sampler, min(room, self.max_new_tokens or room), self.last, progress)
        return self._record(query, list(before), pieces, self.last)

    def _record(
        self, query: str, before: list[Round], pieces: Iterator[str], stats: Stats
    ) -> Generator[str, None, None]:
        answer, done = "", False
        try:
            for piece in pieces:
                answer += piece
                yield piece
            done = True
        finally:
            stats.partial = not done
            if done or answer:
                self.history = [*before, (query, answer)]


def chat(
    model: ChatModel, query: str, history: Sequence[Sequence[str]] | None = None, **options: Any
) -> tuple[str, list[Round]]:
    """The official chat(): (response, history with the new round). Options as in `stream_chat`."""
    return collections.deque(stream_chat(model, query, history, **options), maxlen=1).pop()


def stream_chat(
    model: ChatModel, query: str, history: Sequence[Sequence[str]] | None = None, **options: Any
) -> Iterator[tuple[str, list[Round]]]:
    """The official stream_chat(): (response so far, history with it) after every piece, at least once.

    history   (question, answer) pairs, oldest first; not changed
    options   OFFICIAL_OPTIONS with their defaults; max_length counts prompt and answer, do_sample=False is greedy
    The last response equals chat()'s. Raises UsageError for a wrong option or a question that does not fit, and
    DataError when the model has no tokenizer; warns with ContextWarning when old rounds had to be left out.
    """
    require_tokenizer(model)
    chosen = _official_options(options)
    rounds = check_history(history or [])
    question = check_text(query, "query")
    longest, max_new = chosen["max_length"], chosen["max_new_tokens"]
    ids, dropped = fit_prompt(model, question, rounds, max_length=longest, max_new_tokens=max_new)
    if dropped:
        _warn_dropped(dropped, len(rounds), min(longest, model.context))
    sampler = Sampler(
        temperature=chosen["temperature"] if chosen["do_sample"] else 0.0,
        **{name: chosen[name] for name in ("top_p", "top_k", "repetition_penalty", "seed")},
    )
    room = min(longest, model.context) - len(ids)
    pieces = _pieces(model, ids, sampler, min(room, max_new or room), Stats(lookup=chosen["lookup"]), None)
    return _cumulative(question, rounds, pieces)


def check_count(value: object, name: str) -> int:
    """`value` when it is a number of tokens, 1 or more; raises UsageError otherwise."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= limits.CONTEXT:
        raise UsageError(f"{name} is {printable(repr(value))}; give a whole number from 1 to {limits.CONTEXT:,}")
    return value


def _pieces(
    model: ChatModel, ids: list[int], sampler: Sampler, max_new_tokens: int, stats: Stats, progress: Progress | None
) -> Iterator[str]:
    stream = TextStream(model.tokenizer, post=process_response)
    started = first = time.perf_counter()
    for token in model.generate(
        ids, sampler=sampler, max_new_tokens=max_new_tokens, progress=progress, lookup=stats.lookup
    ):
        now = time.perf_counter()
        if not stats.answer_tokens:
            first = now
            stats.prompt_s = now - started
        stats.answer_tokens += 1
        stats.answer_s = now - first
        stats.finish_reason = token.finish_reason
        stats.drafts += token.draft is not None
        stats.accepted += token.draft == token.id
        # The end token too, as officially: it decodes to nothing, unless a config names an ordinary token.
        if piece := stream.push(token.id):
            yield piece
    if piece := stream.finish():
        yield piece


def _cumulative(query: str, rounds: list[Round], pieces: Iterator[str]) -> Iterator[tuple[str, list[Round]]]:
    response = ""
    for piece in pieces:
        response += piece
        yield response, [*rounds, (query, response)]
    if not response:
        yield "", [*rounds, (query, "")]


def _official_options(options: dict[str, Any]) -> dict[str, Any]:
    for name in options:
        if name not in OFFICIAL_OPTIONS:
            near = difflib.get_close_matches(name, OFFICIAL_OPTIONS, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UsageError(f"unknown option {printable(name)}; {hint}known: {', '.join(OFFICIAL_OPTIONS)}")
    chosen = OFFICIAL_OPTIONS | options
    if chosen["num_beams"] != 1:
        raise UsageError(f"num_beams is {printable(chosen['num_beams'])}, and only 1 (no beam search) exists")
    if chosen["logits_processor"]:
        raise UsageError("logits_processor is given, and only None is accepted; use the sampling options")
    check_count(chosen["max_length"], "max_length")
    if chosen["max_new_tokens"] is not None:
        check_count(chosen["max_new_tokens"], "max_new_tokens")
    return chosen


def _warn_dropped(dropped: int, rounds: int, limit: int) -> None:
    warnings.warn(
        f"the conversation is longer than {limit:,} tokens: the oldest {dropped:,} of its {rounds:,} rounds are left "
        "out of the prompt; raise the context, or clear the conversation",
        ContextWarning,
        stacklevel=4,
    )
