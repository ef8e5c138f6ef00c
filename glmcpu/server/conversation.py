"""The messages of a chat request as what ChatGLM-6B was trained on: rounds of a question and an answer.

    system* (user+ assistant+)* user+

Texts of the same speaker in a row are joined by line breaks. The model knows no system role: such a message becomes a
first round with a short fixed answer, as in `ChatSession`. A prompt that is too long is refused and never shortened.
"""

from collections.abc import Sequence
from itertools import groupby

from glmcpu.chat import SYSTEM_ANSWER
from glmcpu.rounds import Round
from glmcpu.server.fields import Message
from glmcpu.server.problems import bad

_SPEAKER = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def rounds_of(messages: Sequence[Message]) -> tuple[str, list[Round]]:
    """(the question, the rounds before it); refuses orders that are no conversation."""
    for place, message in enumerate(messages):
        if message.role == "user" and not message.text().strip():
            raise bad(f"messages[{place}].content is empty; say something", f"messages[{place}].content")
    turns: list[tuple[str, str]] = []
    place = 0
    for speaker, group in groupby(messages, key=lambda message: _SPEAKER[message.role]):
        texts = [message.text() for message in group]
        role = f"messages[{place}].role"
        if speaker == "system" and turns:
            raise bad(f"{role}: a system message stands before all others", role)
        if speaker == "assistant" and (not turns or turns[-1][0] == "system"):
            raise bad(f"{role}: an answer follows a question; begin with the user's", role)
        turns.append((speaker, "\n".join(texts)))
        place += len(texts)
    speaker, query = turns.pop()
    if speaker != "user":
        last = f"messages[{len(messages) - 1}].role"
        raise bad(f"{last}: the last message must be the user's, and is the {speaker}'s", last)
    preface = [(turns.pop(0)[1], SYSTEM_ANSWER)] if turns and turns[0][0] == "system" else []
    questions, answers = turns[::2], turns[1::2]
    return query, preface + [(question, answer) for (_, question), (_, answer) in zip(questions, answers, strict=True)]
