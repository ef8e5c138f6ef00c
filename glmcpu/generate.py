"""Ids in, tokens out: the loop that reads a prompt, chooses an id, reads it, and so on until something ends it.

It knows neither chat nor prompt formats. What ends an answer, the first that happens: the model's end token ("stop"), a
stop id or stop string of the caller ("stop"), the number of tokens asked for or the end of the context ("length").
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from glmcpu.errors import DataError, UsageError
from glmcpu.models import LanguageModel, Part
from glmcpu.sampling import Sampler, log_probability
from glmcpu.tokenizers.chatglm import Tokenizer
from glmcpu.tokenizers.streaming import TextStream

GREEDY = Sampler(temperature=0)
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Token:
    """One generated token.

    id             the end token is yielded too, as the last one
    text           what became certain with it, whole characters only, often ""; end tokens have none
    logprob        natural logarithm of the model's own probability of id, before any sampling rule
    finish_reason  None, or on the last token "stop" or "length"
    """

    id: int
    text: str
    logprob: float
    finish_reason: str | None = None


def generate(
    model: LanguageModel,
    tokenizer: Tokenizer | None,
    ids: Sequence[int],
    *,
    context: int,
    sampler: Sampler | None = None,
    max_new_tokens: int = 512,
    stop: Sequence[str | int] = (),
    progress: Progress | None = None,
) -> Iterator[Token]:
    """Continues `ids` token by token; without a sampler the most likely id is taken each time.

    progress(layers done, layers) is called while the prompt is read. Raises UsageError for arguments out of range and
    DataError for ids the model cannot read, both before the first token.
    """
    known = whole_numbers(ids)
    texts, ends = _stops(stop, model.config.eos, tokenizer)
    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens={max_new_tokens}: at least one token must be asked for")
    if len(known) >= context:
        raise DataError(
            f"the prompt is {len(known):,} tokens and the context {context:,}; shorten it or load with a larger context"
        )
    limit = min(context, len(known) + max_new_tokens)
    return _tokens(model, known, limit, (sampler or GREEDY), ends, _stream(tokenizer, texts), progress)


def whole_numbers(ids: Sequence[int]) -> list[int]:
    """`ids` as Python integers, NumPy's accepted; raises UsageError for anything else."""
    try:
        return [operator.index(i) for i in ids]
    except TypeError as error:
        raise UsageError("ids must be a flat sequence of whole numbers, as tokenizer.encode gives") from error


def _tokens(
    model: LanguageModel,
    ids: list[int],
    limit: int,
    sampler: Sampler,
    ends: frozenset[int],
    stream: TextStream | None,
    progress: Progress | None,
) -> Iterator[Token]:
    cache, draw = model.new_cache(limit), sampler.start()
    layers = model.config.layers

    def observe(n: int, _: object) -> None:
        if progress:
            progress(n, layers)

    logits = model.forward([Part(ids, cache)], after_layer=observe)[0]
    while True:
        token = draw.choose(logits, ids)
        logprob = log_probability(logits, token)
        ids.append(token)
        text = stream.push(token) if stream and token not in ends else ""
        if token in ends or (stream and stream.stopped):
            reason = "stop"
        elif len(ids) >= limit:
            reason = "length"
        else:
            yield Token(token, text, logprob)
            logits = model.forward([Part(ids, cache)])[0]
            continue
        yield Token(token, text + (stream.finish() if stream else ""), logprob, reason)
        return


def _stops(stop: Sequence[str | int], eos: int, tokenizer: Tokenizer | None) -> tuple[list[str], frozenset[int]]:
    """Stop strings, and the ids that end an answer."""
    if isinstance(stop, str | int):
        raise UsageError(f"stop={stop!r} must be a list of strings and ids")
    texts = [s for s in stop if isinstance(s, str)]
    if texts and tokenizer is None:
        raise UsageError("stop strings need a tokenizer and this model has none; give stop ids")
    return texts, frozenset([eos, *(s for s in stop if not isinstance(s, str))])


def _stream(tokenizer: Tokenizer | None, stop: Sequence[str]) -> TextStream | None:
    return TextStream(tokenizer, stop=stop) if tokenizer else None
