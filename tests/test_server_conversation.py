"""Messages to rounds: what is a conversation, and which message is at fault when it is none."""

import pytest

pytest.importorskip("pydantic", reason="the extra server is not installed")

from glmcpu.chat import SYSTEM_ANSWER
from glmcpu.server.conversation import rounds_of
from glmcpu.server.fields import Message, Part
from glmcpu.server.problems import Problem

ROLES = {"s": "system", "d": "developer", "u": "user", "a": "assistant"}


def messages(order: str) -> list[Message]:
    return [Message(role=ROLES[role], content=f"{role}{place}") for place, role in enumerate(order)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("order", "query", "rounds"),
    [
        ("u", "u0", []),
        ("uau", "u2", [("u0", "a1")]),
        ("uauau", "u4", [("u0", "a1"), ("u2", "a3")]),
        ("su", "u1", [("s0", SYSTEM_ANSWER)]),
        ("du", "u1", [("d0", SYSTEM_ANSWER)]),
        ("sduau", "u4", [("s0\nd1", SYSTEM_ANSWER), ("u2", "a3")]),
        ("uu", "u0\nu1", []),
        ("uaau", "u3", [("u0", "a1\na2")]),
    ],
)
def test_messages_become_rounds(order: str, query: str, rounds: list[tuple[str, str]]) -> None:
    assert rounds_of(messages(order)) == (query, rounds)


@pytest.mark.parametrize(
    ("order", "param"),
    [
        ("a", "messages[0].role"),
        ("au", "messages[0].role"),
        ("sau", "messages[1].role"),
        ("s", "messages[0].role"),
        ("ua", "messages[1].role"),
        ("usu", "messages[1].role"),
        ("uasu", "messages[2].role"),
    ],
)
def test_other_orders_are_refused_where_they_go_wrong(order: str, param: str) -> None:
    with pytest.raises(Problem) as caught:
        rounds_of(messages(order))
    assert (caught.value.status_code, caught.value.param) == (400, param)


@pytest.mark.parametrize("text", ["", " \n\t", "\u3000"])
def test_a_question_says_something(text: str) -> None:
    with pytest.raises(Problem) as caught:
        rounds_of([*messages("ua"), Message(role="user", content=text)])
    assert caught.value.param == "messages[2].content"


def test_an_answer_may_be_empty() -> None:
    said = [*messages("u"), Message(role="assistant", content=""), *messages("u")]
    assert rounds_of(said) == ("u0", [("u0", "")])


def test_parts_of_text_are_joined() -> None:
    parts = [Part(type="text", text="a"), Part(type="text", text="b")]
    assert rounds_of([Message(role="user", content=parts)]) == ("ab", [])
