"""Remembering: somebody says a thing, talks of something else, and asks for it.

A conversation is one to four things told in any order, other rounds between them, and a question about one of them.
Things are names, numbers, lists and favourites. What was never told is not known, and the answer says so.
"""

from collections.abc import Callable

from demo.example import Example, Pick, Round, table
from demo.slots import SLOTS

Filler = Callable[[], Round]

KINDS = sorted({kind for kind, _ in SLOTS})
# Names, numbers and lists are what people try first.
_WEIGHTS = [5 if kind == "name" else 4 if kind in ("number", "list") else 1 for kind in KINDS]

_NAMES = {mark: [row[1] for row in table("names.txt") if row[0] == mark] for mark in ("en", "zh", "entest", "zhtest")}
_THINGS = table("things.txt")
_HELD_OUT = {word for row in _THINGS if len(row) > 3 for word in row[1:3]}
_LEXICON = [row for row in table("lexicon.txt") if not _HELD_OUT & set(row)]
_ONSETS = [
    "b",
    "br",
    "c",
    "ch",
    "d",
    "f",
    "g",
    "h",
    "j",
    "k",
    "l",
    "m",
    "n",
    "p",
    "qu",
    "r",
    "s",
    "sh",
    "t",
    "v",
    "w",
    "y",
    "z",
]
_RHYMES = ["a", "an", "ar", "e", "el", "en", "i", "in", "ia", "o", "on", "or", "u", "us", "ya", "ee", "ah"]


def recall(pick: Pick, language: str, filler: Filler) -> Example:
    """A conversation in which things are told, and then one is asked for."""
    kinds = [pick.random.choices(KINDS, _WEIGHTS)[0]]
    kinds += [kind for kind in pick.random.sample(KINDS, pick.random.choice((0, 0, 1, 1, 2, 3))) if kind not in kinds]
    pick.random.shuffle(kinds)
    wanted = pick.random.choices(kinds, [_WEIGHTS[KINDS.index(kind)] for kind in kinds])[0]
    history: list[Round] = []
    told: dict[str, str] = {}
    for kind in kinds:
        slot, told[kind] = SLOTS[kind, language], value(pick, kind, language)
        history += [filler() for _ in range(pick.random.choices((0, 1, 2), (8, 2, 0))[0])]
        history.append((pick.asked(slot.tell).format(told[kind]), slot.heard.format(told[kind])))
    history += [filler() for _ in range(pick.random.choices((0, 1, 2, 3), (5, 3, 1, 1))[0])]
    asked = pick.one([kind for kind in KINDS if kind not in told]) if not pick.test and pick.chance(0.08) else wanted
    slot = SLOTS[asked, language]
    prompt = pick.asked(slot.ask)
    if asked not in told:
        return Example("recall", language, prompt, slot.unknown, (slot.unknown,), tuple(history))
    return Example("recall", language, prompt, slot.answer.format(told[asked]), (told[asked],), tuple(history))


def told(pick: Pick, language: str, filler: Filler) -> Example:
    """What is answered to a thing told."""
    kind = pick.random.choices(KINDS, _WEIGHTS)[0]
    slot, thing = SLOTS[kind, language], value(pick, kind, language)
    history = tuple(filler() for _ in range(pick.random.choices((0, 1, 2), (8, 1, 1))[0]))
    prompt = pick.asked(slot.tell).format(thing)
    return Example("told", language, prompt, slot.heard.format(thing), (thing,), history)


def value(pick: Pick, kind: str, language: str) -> str:
    """A thing of that kind: a name, a number, a list or a word."""
    if kind in ("name", "pet"):
        return name(pick, language)
    if kind == "number":
        return str(pick.number(10 ** (digits := pick.number(1, 6)), 10 ** (digits + 1) - 1))
    if kind == "age":
        return str(pick.number(5, 99))
    if kind == "list":
        kinds = ("fruit", "food", "item", "drink")
        words = dict.fromkeys(_thing(pick, pick.one(kinds), language) for _ in range(pick.number(2, 5)))
        return ("、" if language == "zh" else ", ").join(sorted(words, key=lambda _: pick.random.random()))
    return _thing(pick, kind, language)


def name(pick: Pick, language: str) -> str:
    """A name of the lists; in training half of them are made up, so that any name is copied."""
    if language == "zh" and pick.chance(0.15):
        language = "en"
    if pick.test:
        return pick.one(_NAMES[f"{language}test"])
    if pick.chance(0.4):
        return pick.one(_NAMES[language])
    if language == "zh":
        full = [pick.one(_NAMES["zh"]) for _ in range(2)]
        given = common_character(pick) if pick.chance(0.5) else full[1][-1]
        return (
            full[0][0]
            + (common_character(pick) if pick.chance(0.3) else full[1][1])
            + (given if pick.chance(0.6) else "")
        )
    syllables = [pick.one(_ONSETS) + pick.one(_RHYMES) for _ in range(pick.number(1, 3))]
    return "".join(syllables).capitalize()


def common_character(pick: Pick) -> str:
    """One of the 3,755 most common Chinese characters, the first level of GB 2312."""
    n = pick.number(0, 3754)
    return bytes([0xB0 + n // 94, 0xA1 + n % 94]).decode("gb2312")


def _thing(pick: Pick, kind: str, language: str) -> str:
    if not pick.test and pick.chance(0.5):
        return _made_up(pick, language)
    rows = [row for row in _THINGS if row[0] == kind and (len(row) > 3) == pick.test]
    return pick.one([row[1 + (language == "zh")] for row in rows])


def _made_up(pick: Pick, language: str) -> str:
    """Any word, or one that is none: what is told may be anything, and has to be copied, not guessed."""
    one, other = (pick.one(_LEXICON)[language == "zh"] for _ in range(2))
    if pick.chance(0.3):
        return one
    if language == "zh":
        return "".join(
            common_character(pick) if pick.chance(0.4) else pick.one(one + other) for _ in range(pick.number(1, 3))
        )
    return (one[: pick.number(1, 5)] + other[-pick.number(2, 5) :]).replace(" ", "")
