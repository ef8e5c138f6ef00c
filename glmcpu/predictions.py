"""The answers of a model to the examples of a data set, as ptuning/main.py of ChatGLM-6B predicts them.

    prompt   chat prompt of history and prompt, cut behind source - 2 ids      [gMASK] <sop>      answer
    label    the response, cut behind target - 2 ids, and made text again      (two special ids are counted here too)

What is cut off is the end, of a conversation the newest question; an example without a prompt is left out. Prompt and
answer may be source + target + 1 ids together. Officially the prompts are padded, a thousand together to the longest of
them, and the padding is counted, though the model does not see it. Here nothing is padded, and an answer may have as
many ids as it would have there: source + target + 1 less the longest prompt of its thousand. Answers and labels are
text as decoded, without special pieces, which is not what chat() makes of an answer.
"""

import dataclasses
import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from glmcpu import texts
from glmcpu.engine import Engine
from glmcpu.errors import DataError, UsageError, shown
from glmcpu.rounds import TextModel, require_tokenizer
from glmcpu.sampling import Sampler
from glmcpu.stream import Stream
from glmcpu.texts import Columns, Example

TOGETHER = 1000  # what the official library for data sets hands to the tokenizer at once
LEAST = 3  # of source and target: one id, and two special ones


@dataclasses.dataclass(frozen=True)
class Lengths:
    """The most ids of a prompt and of a label, the two special ones included."""

    source: int = 64
    target: int = 64

    @property
    def whole(self) -> int:
        """The most ids of prompt and answer together."""
        return self.source + self.target + 1


@dataclasses.dataclass(frozen=True)
class Asked:
    """An example: what the model reads, how much it may answer, what is expected, and the line of the file."""

    ids: list[int]
    max_new_tokens: int
    label: str
    line: int


def read(
    path: str | os.PathLike[str],
    model: TextModel,
    columns: Columns,
    lengths: Lengths,
    most: int | None = None,
) -> list[Asked]:
    """The first `most` examples of a JSONL file, or all of them, for a model.

    Raises DataError as texts.examples does, for a model without a tokenizer, and for a response that is empty to it;
    UsageError when the model does not read that many ids.
    """
    require_tokenizer(model)
    if lengths.whole > model.context:
        raise UsageError(
            f"{lengths.source:,} ids of a prompt and {lengths.target:,} of an answer, and one, are {lengths.whole:,}, "
            f"and the model reads at most {model.context:,}; lower one of them"
        )
    examples = itertools.islice(texts.examples(path, columns), most)
    asked: list[Asked] = []
    while some := list(itertools.islice(examples, TOGETHER)):
        asked += _asked(path, [example for example in some if example.prompt], model.tokenizer, lengths)
    if not asked:
        raise DataError(f"{shown(path)}: each prompt is empty; expected one at least that has a question")
    return asked


def predict(engine: Engine, asked: Iterable[Asked], sampler: Sampler) -> Iterator[str]:
    """The answers in order, as many under way at once as the engine takes; with a seed, line n is drawn with seed + n.

    Raises what the engine does.
    """
    tokenizer = engine.model.tokenizer
    under_way: deque[Stream] = deque()
    for one in asked:
        if len(under_way) >= engine.places:
            yield _text(under_way.popleft(), tokenizer)
        own = sampler if sampler.seed is None else dataclasses.replace(sampler, seed=sampler.seed + one.line)
        under_way.append(engine.submit(one.ids, sampler=own, max_new_tokens=one.max_new_tokens))
    while under_way:
        yield _text(under_way.popleft(), tokenizer)


def _asked(path: str | os.PathLike[str], examples: Sequence[Example], tokenizer: Any, lengths: Lengths) -> list[Asked]:
    """Examples whose prompts are padded together officially."""
    prompts = [_first(tokenizer, tokenizer.chat_prompt(e.prompt, e.history), lengths.source) for e in examples]
    longest = max(map(len, prompts), default=0) + 2
    found = []
    for example, prompt in zip(examples, prompts, strict=True):
        label = tokenizer.decode(_first(tokenizer, example.response, lengths.target), skip_special_tokens=True)
        if not label.strip():
            raise DataError(
                f"{shown(path)}: line {example.line}: the response is empty to the tokenizer; expected an answer"
            )
        ids = [*prompt, tokenizer.gmask, tokenizer.bos]
        found.append(Asked(ids, lengths.whole - longest, label, example.line))
    return found


def _first(tokenizer: Any, text: str, length: int) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids[: length - 2]


def _text(stream: Stream, tokenizer: Any) -> str:
    # A model has more rows than there are pieces, and may choose one of those.
    ids = [token.id for token in stream if token.id < tokenizer.size]
    return str(tokenizer.decode(ids, skip_special_tokens=True))
