"""Streams: tokens in order from one thread to another or to asyncio, the end, an error, and leaving early."""

import asyncio
import threading
import time
from collections.abc import Callable

import pytest

from glmcpu.errors import MachineError
from glmcpu.generate import GREEDY, Answer, Token
from glmcpu.stream import Item, Stream

TOKENS = [Token(n, chr(65 + n), -0.5) for n in range(3)]


class Left:
    """Counts who leaves."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, stream: Stream) -> None:
        self.count += 1


def stream(left: Callable[[Stream], None] | None = None) -> Stream:
    return Stream(Answer([1], 9, GREEDY, frozenset(), None), 0, left or Left())


def later(target: Stream, *items: Item) -> threading.Thread:
    """Another thread that puts one item after the other."""

    def put() -> None:
        for item in items:
            time.sleep(0.01)
            target.put(item)

    thread = threading.Thread(target=put)
    thread.start()
    return thread


async def gathered(target: Stream) -> list[Token]:
    return [token async for token in target]


def test_tokens_arrive_in_order_whether_they_were_there_or_come_later() -> None:
    for before in range(4):
        one = stream()
        for token in TOKENS[:before]:
            one.put(token)
        thread = later(one, *TOKENS[before:], None)
        assert list(one) == TOKENS
        thread.join()


def test_asyncio_gets_the_same() -> None:
    for before in range(4):
        one = stream()
        for token in TOKENS[:before]:
            one.put(token)
        thread = later(one, *TOKENS[before:], None)
        assert asyncio.run(gathered(one)) == TOKENS
        thread.join()


def test_several_items_may_come_at_once() -> None:
    one = stream()
    one.put(*TOKENS, None)
    assert list(one) == TOKENS
    two = stream()
    two.put(*TOKENS, None)
    assert asyncio.run(gathered(two)) == TOKENS


def test_an_error_is_raised_behind_the_tokens_before_it() -> None:
    one = stream()
    one.put(TOKENS[0], MachineError("no memory"))
    tokens = iter(one)
    assert next(tokens) == TOKENS[0]
    with pytest.raises(MachineError, match="no memory"):
        next(tokens)
    with pytest.raises(MachineError, match="no memory"):
        list(one)


def test_iterating_again_ends_at_once() -> None:
    one = stream()
    one.put(*TOKENS, None)
    assert list(one) == TOKENS
    assert list(one) == asyncio.run(gathered(one)) == []


def test_leaving_early_cancels_and_the_end_does_not() -> None:
    left = Left()
    one = stream(left)
    one.put(*TOKENS)
    for _ in one:
        break
    assert (left.count, one.cancelled) == (1, True)
    two = stream(left)
    two.put(*TOKENS, None)
    list(two)
    assert (left.count, two.cancelled) == (1, False)


def test_a_loop_that_is_closed_does_not_disturb_who_puts() -> None:
    one = stream()
    one.put(TOKENS[0])

    async def first() -> Token:
        tokens = aiter(one)
        return await anext(tokens)

    assert asyncio.run(first()) == TOKENS[0]
    one.put(TOKENS[1], None)
