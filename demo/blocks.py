"""Questions with a fixed answer, read from data/: facts about ChatGLM-6B and glmcpu, small talk, honest refusals.

Q: a wording, any number of them      T: a wording for tests only      A: the answer      K: what must be in it
"""

import functools
from dataclasses import dataclass, field

from demo.example import DATA, Example, Pick

TOPICS = ("facts", "talk", "honest")


@dataclass
class Block:
    """One question in its wordings and its answer."""

    wordings: list[str] = field(default_factory=list)
    held_out: list[str] = field(default_factory=list)
    answer: str = ""
    keys: tuple[str, ...] = ()


@functools.cache
def blocks(topic: str, language: str) -> list[Block]:
    """The blocks of a file."""
    found = []
    text = (DATA / f"{topic}.{language}.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for part in "\n".join(lines).split("\n\n"):
        block = Block()
        for line in part.splitlines():
            mark, _, rest = line.partition(":")
            rest = rest.strip()
            if mark == "Q":
                block.wordings.append(rest)
            elif mark == "T":
                block.held_out.append(rest)
            elif mark == "A":
                block.answer = rest
            elif mark == "K":
                block.keys = tuple(key.strip() for key in rest.replace("，", ",").split(","))
        if block.wordings:
            found.append(block)
    return found


def fixed(pick: Pick, language: str, topic: str) -> Example:
    """A question of that topic; in training sometimes with other words around it."""
    block = pick.random.choice(blocks(topic, language))
    if pick.test:
        return Example(topic, language, pick.one(block.held_out), block.answer, block.keys)
    prompt = pick.loosely(pick.one(block.wordings))
    if pick.chance(0.15):
        prompt = prompt.rstrip(".?!。？！")
    elif prompt[-1] not in ".?!。？！" and pick.chance(0.3):
        prompt += "？" if language == "zh" else "?"
    return Example(topic, language, prompt, block.answer, block.keys)
