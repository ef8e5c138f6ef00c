"""Answers held to JSON: before each token, the ids that keep the text on the way to a valid document.

The llguidance library knows the grammar of a schema and the bytes of every piece. Here stand only the two bridges: the
tokenizer's pieces as bytes, and the library's bit mask as ids. Documents are written as json.dumps writes them.
"""

import json
import math
import threading
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from typing import Any

import llguidance
import numpy as np

from glmcpu import limits
from glmcpu.errors import UsageError, printable
from glmcpu.sampling import Ids
from glmcpu.tokenizers.chatglm import Tokenizer

_FORM: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_building = threading.Lock()


class JsonConstraint:
    """A document under way; see `generate.Constraint`."""

    def __init__(self, tokenizer: Tokenizer, schema: dict[str, Any]) -> None:
        """`schema` is a JSON schema. Raises UsageError for one that is none, or more than the library does."""
        _check_multiples(schema)
        with _building:
            vocabulary = _vocabulary(tokenizer)
        try:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_FORM)
        except ValueError as error:
            raise UsageError(f"the JSON schema cannot be used: {printable(error, 300)}") from error
        self._matcher = llguidance.LLMatcher(vocabulary, grammar, log_level=0)
        self._check("the JSON schema cannot be used")
        self.allowed()  # a schema that nothing satisfies is found here, and not in the middle of an answer

    def allowed(self) -> Ids:
        """The ids that may come next; the end token when the document is complete."""
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check("the answer cannot be held to the JSON schema any longer")
        return np.flatnonzero(np.unpackbits(mask, bitorder="little"))

    def take(self, token: int) -> None:
        """This one came."""
        self._matcher.consume_token(token)

    def _check(self, what: str) -> None:
        if self._matcher.is_error():
            cause = self._matcher.get_error().partition("\n")[0]  # behind it stands the state of the library
            raise UsageError(f"{what}: {printable(cause, 300)}")


ANY_OBJECT = {"type": "object"}


def _check_multiples(schema: Any) -> None:
    """The library counts up to their least common multiple: 10,000 takes it 70 ms, a million half a minute."""
    steps = [Fraction(str(step)) for step in _multiples(schema)]
    unit = math.lcm(*(step.denominator for step in steps))
    if math.lcm(*(int(step * unit) for step in steps)) > limits.SCHEMA_MULTIPLE:
        raise UsageError(
            f"the JSON schema cannot be used: together its multipleOf are larger than {limits.SCHEMA_MULTIPLE:,}; "
            "leave them out"
        )


def _multiples(schema: Any) -> Iterator[int | float]:
    if isinstance(schema, dict):
        step = schema.get("multipleOf")
        if isinstance(step, int | float) and not isinstance(step, bool):
            yield step
    children = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    for child in children:
        yield from _multiples(child)


class _Pieces:
    """What llguidance asks of a tokenizer: each id's bytes, and ids of any text, exactly.

    Not those that `encode` gives, which folds blanks and puts one in front.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.eos_token_id, self.bos_token_id = tokenizer.eos, tokenizer.bos
        self.tokens = [tokenizer.bytes_of(token) for token in range(tokenizer.size)]
        self.special_token_ids = [token for token, data in enumerate(self.tokens) if not data]
        self._ids = {data: token for token, data in reversed([*enumerate(self.tokens)])}
        self._longest = max(map(len, self.tokens))

    def __call__(self, text: bytes) -> list[int]:
        ids, at = [], 0
        while at < len(text):  # the longest piece each time; every byte has one
            size = next(n for n in range(self._longest, 0, -1) if text[at : at + n] in self._ids)
            ids.append(self._ids[text[at : at + size]])
            at += size
        return ids


@lru_cache(maxsize=1)
def _vocabulary(tokenizer: Tokenizer) -> Any:
    wrapper = llguidance.TokenizerWrapper(_Pieces(tokenizer))
    return llguidance.LLTokenizer(wrapper, n_vocab=tokenizer.size)
