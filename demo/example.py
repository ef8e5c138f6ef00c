"""What the corpus is made of: a question in a conversation, its answer, and what a right answer must contain."""

import random
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

_CHOICE = re.compile(r"\(([^()]*)\)")  # the innermost

_CHINESE = re.compile("[\u4e00-\u9fff]")
_BEFORE_EN = (
    "Hi, ",
    "Hello, ",
    "Please: ",
    "I have a question: ",
    "Hey, ",
    "One more thing: ",
    "Ok, ",
    "Now ",
    "So ",
    "And ",
    "Well, ",
)
_BEFORE_ZH = ("请问，", "你好，", "我想问一下，", "问一下，", "那么，", "另外，", "好的，", "现在", "嗯，")

DATA = Path(__file__).parent / "data"
LANGUAGES = ("en", "zh")

Round = tuple[str, str]
T = TypeVar("T")


@dataclass(frozen=True)
class Example:
    """The answer to `prompt` after `history`.

    keys     an answer is right when it contains all of these, whatever the case
    exact    it must be `response` itself
    """

    topic: str
    language: str
    prompt: str
    response: str
    keys: tuple[str, ...] = ()
    history: tuple[Round, ...] = field(default=())
    exact: bool = False

    def is_right(self, answer: str) -> bool:
        """Whether `answer` will do; white space at its ends does not count."""
        if self.exact:
            return answer.strip().rstrip(".。") == self.response.strip().rstrip(".。")
        return all(key.lower() in answer.lower() for key in self.keys)


class Pick:
    """Random choices of one example. In a test the held-out ones are taken, which training never sees."""

    def __init__(self, source: random.Random, test: bool = False) -> None:
        self.random, self.test = source, test

    def one(self, choices: Sequence[T]) -> T:
        """Any of them."""
        return self.random.choice(choices)

    def wording(self, patterns: Sequence[str]) -> str:
        """One way to say it: of `(a|b|)` in a pattern one is taken. An eighth of all ways is held out."""
        while True:
            text = self.one(patterns)
            while found := _CHOICE.search(text):
                text = text[: found.start()] + self.one(found[1].split("|")) + text[found.end() :]
            if (zlib.crc32(text.encode()) % 8 == 0) == self.test:
                return text

    def asked(self, patterns: Sequence[str]) -> str:
        """A wording as people type it."""
        return self.loosely(self.wording(patterns))

    def loosely(self, text: str) -> str:
        """The same with words in front, no mark at the end, no capital at the beginning: each now and then."""
        if self.chance(0.1):
            text = self.one(_BEFORE_ZH if _CHINESE.search(text) else _BEFORE_EN) + text
        elif self.chance(0.15):
            text = text[:1].lower() + text[1:]
        elif self.chance(0.3):
            text = text[:1].upper() + text[1:]
        elif self.chance(0.05) and not _CHINESE.search(text) and text[-1:].isalpha():
            text += " please"
        return text.rstrip(".?。？!！") if self.chance(0.1) else text

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def number(self, low: int, high: int) -> int:
        return self.random.randint(low, high)


def table(name: str) -> list[list[str]]:
    """The lines of a data file, split at tabs; # begins a comment."""
    lines = (DATA / name).read_text(encoding="utf-8").splitlines()
    return [line.split("\t") for line in lines if line.strip() and not line.startswith("#")]
