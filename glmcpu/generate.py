"""Ids in, tokens out: the loop that reads a prompt, chooses an id, reads it, and so on until something ends it.

    prompt -> scores -> id drawn -> pass over that id and drafts of the next ones (lookup.py) -> scores after each -> ..

The id drawn decides: as long as it is the draft, the next scores are there already; at the first other one what was
read behind it is forgotten. Each id is drawn from the scores and with the random numbers it would be without drafts, so
the answer is the same to the bit. Plain decoding is the case of no drafts.

It knows neither chat nor prompt formats. What ends an answer, the first that happens: the model's end token ("stop"), a
stop id or stop string of the caller ("stop"), the number of tokens asked for or the end of the context ("length").
"""

import operator
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypedDict

from glmcpu.backends import Floats
from glmcpu.cache import KVCache
from glmcpu.errors import DataError, UsageError
from glmcpu.lookup import Lookup
from glmcpu.models import LanguageModel, Part
from glmcpu.sampling import Ids, Sampler, likeliest, log_probability
from glmcpu.tokenizers.chatglm import Tokenizer
from glmcpu.tokenizers.streaming import TextStream, identity

if TYPE_CHECKING:
    from typing_extensions import Unpack

GREEDY = Sampler(temperature=0)
DRAFTS = 8  # the most that a pass reads along
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Token:
    """One generated token.

    id             the end token is yielded too, as the last one
    text           what became certain with it, whole characters only, often ""; end tokens have none
    logprob        natural logarithm of the model's own probability of id, before any sampling rule
    finish_reason  None, or on the last token "stop" or "length"
    top            the likeliest ids at this place and their log-probabilities, as many as were asked for
    draft          the id that lookup had guessed for this place, or None; no part of what is compared
    """

    id: int
    text: str
    logprob: float
    finish_reason: str | None = None
    top: tuple[tuple[int, float], ...] = ()
    draft: int | None = field(default=None, compare=False)


class Constraint(Protocol):
    """Decides which ids may follow, such as those that keep an answer valid JSON."""

    def allowed(self) -> Ids:
        """The ids that may come next, ascending, at least one; the end token when the answer may end here."""
        ...

    def take(self, token: int) -> None:
        """This one came."""
        ...


class Options(TypedDict, total=False):
    """How an answer is made, wherever one is asked for.

    sampler         how ids are chosen; None: the most likely one each time
    max_new_tokens  the longest answer, 512 if not given
    stop            strings before which its text ends, and ids that end it
    post            `prompt.process_response` for the text as chat() returns it, else it is as decoded
    constraint      which ids may follow; the text then is that of the ids, nothing cleaned up
    top             how many of the likeliest ids each Token names
    """

    sampler: Sampler | None
    max_new_tokens: int
    stop: Sequence[str | int]
    post: Callable[[str], str]
    constraint: Constraint | None
    top: int


def generate(
    model: LanguageModel,
    tokenizer: Tokenizer | None,
    ids: Sequence[int],
    *,
    context: int,
    progress: Progress | None = None,
    lookup: bool = True,
    **options: "Unpack[Options]",
) -> Iterator[Token]:
    """Continues `ids` token by token, as `options` say.

    progress(layers done, layers) is called while the prompt is read. `lookup` reads drafts along, which changes the
    time and nothing else. Raises UsageError for arguments out of range and DataError for ids the model cannot read,
    both before the first token.
    """
    answer = begin(model.config.eos, tokenizer, ids, context=context, **options)
    return _tokens(model, answer, DRAFTS if lookup else 0, progress)


def begin(
    eos: int, tokenizer: Tokenizer | None, ids: Sequence[int], *, context: int, **options: "Unpack[Options]"
) -> "Answer":
    """The answer to `ids` before its first token; raises UsageError and DataError as `generate` does."""
    known, max_new_tokens = whole_numbers(ids), options.get("max_new_tokens", 512)
    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens={max_new_tokens}: at least one token must be asked for")
    if len(known) >= context:
        raise DataError(
            f"the prompt is {len(known):,} tokens and the context {context:,}; shorten it or load with a larger context"
        )
    texts, ends = _stops(options.get("stop", ()), eos, tokenizer)
    stream, constraint = None, options.get("constraint")
    if tokenizer:
        stream = TextStream(tokenizer, options.get("post", identity), texts, clean_up=constraint is None)
    limit = min(context, len(known) + max_new_tokens)
    return Answer(known, limit, options.get("sampler") or GREEDY, ends, stream, constraint, options.get("top", 0))


class Answer:
    """A prompt and what follows it so far: `ids`, at most `limit` of them, the first `prompt_tokens` the prompt's."""

    def __init__(
        self,
        ids: list[int],
        limit: int,
        sampler: Sampler,
        ends: frozenset[int],
        stream: TextStream | None,
        constraint: Constraint | None = None,
        top: int = 0,
    ) -> None:
        self.ids, self.limit, self.prompt_tokens = ids, limit, len(ids)
        self._draw, self._ends, self._stream = sampler.start(len(ids)), ends, stream
        self._constraint, self._top = constraint, top

    def take(self, logits: Floats, draft: int | None = None) -> Token:
        """Draws the next token from the scores (V,) after `ids`, which it joins."""
        constraint = self._constraint
        token = self._draw.choose(logits, self.ids, constraint.allowed() if constraint else None)
        logprob = log_probability(logits, token)
        top = likeliest(logits, self._top) if self._top else ()
        self.ids.append(token)
        if constraint:
            constraint.take(token)
        stream = self._stream
        text = stream.push(token) if stream and token not in self._ends else ""
        reason = None
        if token in self._ends or (stream and stream.stopped):
            reason = "stop"
        elif len(self.ids) >= self.limit:
            reason = "length"
        if reason and stream:
            text += stream.finish()
        return Token(token, text, logprob, reason, top, draft)


def whole_numbers(ids: Sequence[int]) -> list[int]:
    """`ids` as Python integers, NumPy's accepted; raises UsageError for anything else."""
    try:
        return [operator.index(i) for i in ids]
    except TypeError as error:
        raise UsageError("ids must be a flat sequence of whole numbers, as tokenizer.encode gives") from error


def _tokens(model: LanguageModel, answer: Answer, drafts: int, progress: Progress | None) -> Iterator[Token]:
    cache, layers = model.new_cache(answer.limit), model.config.layers

    def observe(n: int, _: object) -> None:
        if progress:
            progress(n, layers)

    begin_s = time.perf_counter()
    rows = model.forward([Part(answer.ids, cache)], after_layer=observe)
    lookup = Lookup(drafts, len(answer.ids), time.perf_counter() - begin_s)
    token = answer.take(rows[0])
    yield token
    while not token.finish_reason:
        for token in advance(model, answer, cache, lookup):
            yield token


def advance(model: LanguageModel, answer: Answer, cache: KVCache, lookup: Lookup) -> Iterator[Token]:
    """One pass over the id drawn last and drafts of the next ones: a token, and one more for each draft that holds."""
    ids = answer.ids
    guesses = lookup.draft(ids, answer.limit - len(ids) - 1)
    cache.length = len(ids) - 1  # forgets drafts that did not hold
    begin_s = time.perf_counter()
    rows = model.forward([Part([*ids, *guesses], cache)], every=True)
    took_s, held = time.perf_counter() - begin_s, 0
    for logits, guess in zip(rows, [*guesses, None], strict=True):
        token = answer.take(logits, guess)
        yield token
        if token.finish_reason:
            return
        if token.id != guess:
            break
        held += 1
    lookup.learn(len(guesses), held, took_s)


def _stops(stop: Sequence[str | int], eos: int, tokenizer: Tokenizer | None) -> tuple[list[str], frozenset[int]]:
    """Stop strings, and the ids that end an answer."""
    if isinstance(stop, str | int):
        raise UsageError(f"stop={stop!r} must be a list of strings and ids")
    texts = [s for s in stop if isinstance(s, str)]
    if texts and tokenizer is None:
        raise UsageError("stop strings need a tokenizer and this model has none; give stop ids")
    return texts, frozenset([eos, *(s for s in stop if not isinstance(s, str))])
