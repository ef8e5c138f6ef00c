"""Examples as training reads them: ids, where the answer begins, and batches in an order that a seed fixes.

    question [gMASK] <sop> answer <eop>
             ^ context ends here: from <sop> on each id is predicted from what stands before it, as officially

A question is cut to source_tokens - 1 ids and an answer to target_tokens - 2, as in ptuning/main.py, and what was cut
is counted. Each pass over the data has an order of its own; a batch is filled up on the right to its longest sequence,
which nothing sees.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from glmcpu import limits, texts
from glmcpu.errors import DataError, shown
from glmcpu.models.chatglm import Config
from glmcpu.texts import Columns
from glmcpu.tokenizers.chatglm import Tokenizer


@dataclass(frozen=True)
class Example:
    """ids[begin:] are predicted; ids[begin] is <sop>."""

    ids: list[int]
    begin: int


@dataclass(frozen=True)
class Examples:
    """A file of examples; so many of the questions and of the answers were too long and were cut."""

    all: list[Example]
    cut_questions: int
    cut_answers: int

    @property
    def targets(self) -> int:
        """Ids that are predicted."""
        return sum(len(example.ids) - example.begin for example in self.all)

    def describe(self, source_tokens: int, target_tokens: int) -> str:
        """ "200 examples; 3 questions are longer than 64 tokens and were cut"."""
        cut = [
            f"{count:,} {what} longer than {most:,} tokens and {'was' if count == 1 else 'were'} cut"
            for count, what, most in (
                (self.cut_questions, "question is" if self.cut_questions == 1 else "questions are", source_tokens),
                (self.cut_answers, "answer is" if self.cut_answers == 1 else "answers are", target_tokens),
            )
            if count
        ]
        number = "1 example" if len(self.all) == 1 else f"{len(self.all):,} examples"
        return "; ".join([number, *cut])


def read(
    path: Path, columns: Columns, tokenizer: Tokenizer, config: Config, source_tokens: int, target_tokens: int
) -> Examples:
    """Raises DataError, with file and line, for what texts.examples refuses, and for a text that has no ids."""
    found, cut_questions, cut_answers = [], 0, 0
    for example in texts.examples(path, columns):
        prompt = tokenizer.chat_prompt(example.prompt, example.history)
        question = tokenizer.encode(prompt, add_special_tokens=False)
        answer = tokenizer.encode(example.response, add_special_tokens=False)
        if not answer:
            raise DataError(f"{shown(path)}: line {example.line}: the response is empty to the tokenizer; give a text")
        cut_questions += len(question) > source_tokens - 1
        cut_answers += len(answer) > target_tokens - 2
        ids = [*question[: source_tokens - 1], config.gmask, config.bos, *answer[: target_tokens - 2], config.eos]
        found.append(Example(ids, max(1, ids.index(config.bos))))  # a question may hold <sop>
        if len(found) > limits.TUNING_EXAMPLES:
            raise DataError(f"{shown(path)}: more than {limits.TUNING_EXAMPLES:,} examples; split the file")
    return Examples(found, cut_questions, cut_answers)


def batch(examples: Sequence[Example], number: int, size: int, seed: int) -> list[Example]:
    """Batch `number` of a training without end: each pass over the examples in an order of its own."""
    order: dict[int, NDArray[np.int64]] = {}
    chosen = []
    for place in range(number * size, (number + 1) * size):
        turn, at = divmod(place, len(examples))
        if turn not in order:
            order[turn] = np.random.default_rng([seed, turn]).permutation(len(examples))
        chosen.append(examples[order[turn][at]])
    return chosen
