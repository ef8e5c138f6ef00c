"""The corpus: examples without end, drawn by a seed, all made here or from the lines in data/.

Most stand alone, the others in a conversation of up to three other rounds, of any topic and either language.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

from demo import arithmetic, blocks, copying, memory, translation
from demo.example import LANGUAGES, Example, Pick, Round

Maker = Callable[[Pick, str], Example]


def _from_blocks(topic: str) -> Maker:
    return lambda pick, language: blocks.fixed(pick, language, topic)


# The share of each topic, and what makes an example of it.
_ALONE: dict[str, tuple[float, Maker]] = {
    "copy": (0.14, copying.repeat),
    "reorder": (0.11, copying.reorder),
    "arithmetic": (0.20, arithmetic.arithmetic),
    "translation": (0.15, translation.translation),
    "facts": (0.14, _from_blocks("facts")),
    "talk": (0.10, _from_blocks("talk")),
    "honest": (0.05, _from_blocks("honest")),
}
_REMEMBERED = 0.28  # the share of recall and told
TOPICS = ("recall", *_ALONE)


def examples(seed: int) -> Iterator[Example]:
    """Training examples."""
    source = random.Random(seed)
    pick = Pick(source)
    while True:
        language = source.choice(LANGUAGES)
        if source.random() < _REMEMBERED:
            make = memory.recall if source.random() < 0.75 else memory.told
            yield make(pick, language, lambda: filler(pick))
        else:
            yield _in_conversation(pick, one(pick, language))


def held_out(seed: int, per_topic: int) -> Iterator[Example]:
    """Test examples: as many of each topic and language, with names, numbers and wordings that are not in training."""
    for topic in TOPICS:
        for language in LANGUAGES:
            source = random.Random(f"{seed} {topic} {language}")
            pick, others = Pick(source, test=True), Pick(source)
            for _ in range(per_topic):
                if topic == "recall":
                    yield memory.recall(pick, language, lambda others=others: filler(others))  # type: ignore[misc]
                else:
                    yield _ALONE[topic][1](pick, language)


def one(pick: Pick, language: str) -> Example:
    """An example that needs no history."""
    topics = list(_ALONE)
    topic = pick.random.choices(topics, [share for share, _ in _ALONE.values()])[0]
    return _ALONE[topic][1](pick, language)


def filler(pick: Pick) -> Round:
    """A round about something else."""
    example = one(pick, pick.one(LANGUAGES))
    return example.prompt, example.response


def _in_conversation(pick: Pick, example: Example) -> Example:
    if pick.chance(0.7):
        return example
    rounds: list[Round] = []
    for _ in range(pick.random.choices((1, 2, 3), (6, 2, 1))[0]):
        if pick.chance(0.2):
            before = memory.told(pick, pick.one(LANGUAGES), lambda: filler(pick))
            rounds.append((before.prompt, before.response))
        else:
            rounds.append(filler(pick))
    return replace(example, history=tuple(rounds))
