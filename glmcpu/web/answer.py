"""One answer on the page: what stands in the browser becomes a prompt, and tokens become a message that grows.

    messages -> rounds -> fit_prompt -> engine.submit -> (messages, figures)

The browser sends the whole conversation with each question. The figures stand under the conversation and are no part of
it. Why there is no answer is said in a note, a message with a title; notes, and questions without an answer, are no
part of the next prompt.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from glmcpu.chat import Stats, check_count
from glmcpu.engine import Engine
from glmcpu.errors import BusyError, GlmcpuError, UsageError
from glmcpu.rounds import Round, TextModel, check_text, fit_prompt, require_tokenizer
from glmcpu.sampling import Sampler
from glmcpu.tokenizers.prompt import process_response
from glmcpu.web.words import Words

Message = dict[str, Any]
Shown = tuple[list[Message], str]

SHOWN_EVERY_S = 0.05  # at most: each time Gradio compares the whole conversation with what the browser has


def rounds(messages: Sequence[Message]) -> list[Round]:
    """The (question, answer) pairs of a conversation."""
    found: list[Round] = []
    question = None
    for message in messages:
        text = "\n".join(part["text"] for part in message["content"])
        if message["role"] == "user":
            question = check_text(text, "question")
        elif question is not None and text and not (message.get("metadata") or {}).get("title"):
            found.append((question, check_text(text, "answer")))
            question = None
    return found


async def answers(
    find_engine: Callable[[], Engine],
    question: str,
    messages: Sequence[Message],
    words: Words,
    *,
    max_length: int = 2048,
    top_p: float = 0.7,
    temperature: float = 0.95,
) -> AsyncGenerator[Shown, None]:
    """The answer to `question` and its figures, again and again while they grow; to close it is to stop the answer.

    max_length counts prompt and answer, as officially; where top_p or temperature is 0 the likeliest id is taken.
    """
    try:
        engine = find_engine()
        model: TextModel = engine.model
        require_tokenizer(model)
        if not question.strip():
            raise UsageError("the question is empty; type one")
        sampler = Sampler(temperature=temperature, top_p=top_p) if top_p and temperature else Sampler(temperature=0)
        longest = min(check_count(max_length, "maximum length"), model.context)
        # In a thread, so that other answers go on: for a long conversation this takes a while.
        ids, dropped = await asyncio.to_thread(
            fit_prompt, model, check_text(question, "question"), rounds(messages), max_length=longest
        )
        stream = engine.submit(ids, sampler=sampler, max_new_tokens=longest - len(ids), post=process_response)
        said, stats = "", Stats(len(ids), dropped_rounds=dropped)
        started = shown = time.perf_counter()
        try:
            async for token in stream:
                now = time.perf_counter()
                stats.prompt_s = stats.prompt_s or now - started
                stats.answer_s = now - started - stats.prompt_s
                stats.answer_tokens += 1
                stats.finish_reason = token.finish_reason
                said += token.text
                if token.text and now - shown >= SHOWN_EVERY_S:
                    shown = now
                    yield [_said(said)], _figures(stats, words)
        finally:
            stream.cancel()
        yield [_said(said)], _figures(stats, words)
    except GlmcpuError as error:
        yield [{**_said(""), "metadata": {"title": no_answer(error, words), "status": "done"}}], ""


def no_answer(error: GlmcpuError, words: Words) -> str:
    """Why there is none, in a sentence."""
    return words["later" if isinstance(error, BusyError) else "no_answer"].format(reason=error)


def _said(text: str) -> Message:
    # As a part, not as a string: of a string Gradio takes the indentation away.
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def _figures(stats: Stats, words: Words) -> str:
    """The line under an answer: its speed, and what the reader should know of it."""
    line = words["figures"].format(
        rate=stats.answer_tokens_per_s, answer=stats.answer_tokens, wait=stats.prompt_s, prompt=stats.prompt_tokens
    )
    cut = [words["length"]] if stats.finish_reason == "length" else []
    left_out = [words["dropped"].format(dropped=stats.dropped_rounds)] if stats.dropped_rounds else []
    return " · ".join([line, *cut, *left_out])
