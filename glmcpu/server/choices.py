"""Answers on their way from the engine to a client: all at once or as events, one or several for a request.

A client that leaves is noticed while its answers are made, and they are cancelled: the engine drops them with the step
that runs. Whoever uses these functions gets every stream ended, however it goes.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from glmcpu.generate import Token
from glmcpu.server.problems import Problem
from glmcpu.server.telemetry import Record
from glmcpu.stream import Stream

T = TypeVar("T")


async def tokens_of(streams: Sequence[Stream], record: Record | None = None) -> AsyncIterator[tuple[int, Token]]:
    """(number of the choice, token) as they come.

    Raises ClientDisconnect when the client has left, and Problem when an answer was cut off by the server's end.
    """
    try:
        if len(streams) == 1:
            last = None
            async for last in streams[0]:
                yield 0, last
            _check_ended(last, record)
            return
        arrived: asyncio.Queue[tuple[int, Token] | BaseException | None] = asyncio.Queue()
        tasks = [asyncio.create_task(_feed(n, stream, arrived, record)) for n, stream in enumerate(streams)]
        left = len(tasks)
        while left:
            item = await arrived.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        for stream in streams:
            stream.cancel()


async def all_tokens(streams: Sequence[Stream], record: Record | None = None) -> list[list[Token]]:
    """The tokens of every choice."""
    tokens: list[list[Token]] = [[] for _ in streams]
    async for choice, token in tokens_of(streams, record):
        tokens[choice].append(token)
    return tokens


async def unless_left(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client leaves; raises ClientDisconnect then."""
    working, left = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, left}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        left.cancel()
        working.cancel()
        await asyncio.wait({working, left})  # the answers are cancelled, and can be counted


def note(record: Record, streams: Sequence[Stream], each: int = 1) -> None:
    """What the log and the metrics say of finished answers."""
    stream = streams[0]
    record.figures |= usage(streams, each) | {"queue_ms": _ms(stream.asked_s, stream.began_s)}
    if stream.first_s:
        record.figures |= {"first_ms": _ms(stream.asked_s, stream.first_s)}
        record.figures |= {"answer_ms": _ms(stream.first_s, stream.last_s)}
    if record.left or (stream.cancelled and not stream.ended):
        record.figures["left"] = True


def usage(streams: Sequence[Stream], each: int = 1) -> dict[str, int]:
    """OpenAI's count of tokens; the prompt of several choices, `each` so many, counts once."""
    prompt = sum(stream.answer.prompt_tokens for stream in streams[::each])
    written = sum(len(stream.answer.ids) - stream.answer.prompt_tokens for stream in streams)
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}


def timings(stream: Stream) -> dict[str, float]:
    """llama.cpp's figures of one answer, and how long it waited before."""
    read, written = stream.answer.prompt_tokens, len(stream.answer.ids) - stream.answer.prompt_tokens
    read_ms, written_ms = _ms(stream.began_s, stream.first_s), _ms(stream.first_s, stream.last_s)
    return {
        "queue_ms": _ms(stream.asked_s, stream.began_s),
        "prompt_n": read,
        "prompt_ms": read_ms,
        "prompt_per_second": round(1000 * read / read_ms, 2) if read_ms else 0.0,
        "predicted_n": written,
        "predicted_ms": written_ms,
        "predicted_per_second": round(1000 * (written - 1) / written_ms, 2) if written_ms else 0.0,
    }


async def _feed(n: int, stream: Stream, arrived: "asyncio.Queue[Any]", record: Record | None) -> None:
    try:
        last = None
        async for last in stream:
            arrived.put_nowait((n, last))
        _check_ended(last, record)
        arrived.put_nowait(None)
    except BaseException as error:
        arrived.put_nowait(error)


def _check_ended(last: Token | None, record: Record | None) -> None:
    """A stream that just stops was cancelled: because the client left, or else because the engine is closing."""
    if last is None or last.finish_reason is None:
        if record and record.left:
            raise ClientDisconnect
        raise Problem(503, "the server is shutting down and the answer was not finished", "shutting_down")


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _ms(begin_s: float, end_s: float) -> float:
    return round(1000 * max(0.0, end_s - begin_s), 2) if begin_s and end_s else 0.0
