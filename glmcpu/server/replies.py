"""The JSON of answers in OpenAI's two forms, whole and in chunks."""

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from glmcpu.generate import Token
from glmcpu.server.choices import timings, usage
from glmcpu.stream import Stream
from glmcpu.tokenizers.chatglm import Tokenizer


class Reply:
    """What both forms share."""

    kind: str
    chunk_kind: str
    prefix: str

    def __init__(self, model: str, tokenizer: Tokenizer, logprobs: bool, each: int) -> None:
        """`each`: how many choices a prompt has."""
        self._tokenizer, self._logprobs, self.each = tokenizer, logprobs, each
        self._frame = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, tokens: Sequence[list[Token]], streams: Sequence[Stream]) -> dict[str, Any]:
        """The answer to a request without "stream"."""
        found = [self._whole_choice(n, each) for n, each in enumerate(tokens)]
        frame = {**self._frame, "object": self.kind, "choices": found}
        return {**frame, "usage": usage(streams, self.each), "timings": timings(streams[0])}

    def opening(self, count: int) -> Iterator[dict[str, Any]]:
        """The chunks before the first token."""
        yield from ()

    def chunks(self, choice: int, token: Token, stream: Stream) -> Iterator[dict[str, Any]]:
        """The chunks that a token brings: none while its characters are not certain."""
        shown = self._shown([token])
        if token.text or shown:
            yield self._chunk(self._piece(choice, token.text, shown or None, None))
        if token.finish_reason:
            yield self._chunk(self._piece(choice, None, None, token.finish_reason)) | {"timings": timings(stream)}

    def usage(self, streams: Sequence[Stream]) -> dict[str, Any]:
        """The chunk that has nothing but the count of tokens."""
        return {**self._frame, "object": self.chunk_kind, "choices": [], "usage": usage(streams, self.each)}

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        return {**self._frame, "object": self.chunk_kind, "choices": [choice]}

    def _shown(self, tokens: Sequence[Token]) -> list[Token]:
        """The tokens whose probabilities were asked for; the end token is none of the text's."""
        return [token for token in tokens if token.id != self._tokenizer.eos] if self._logprobs else []

    def _text(self, token: int) -> str:
        return self._tokenizer.bytes_of(token).decode("utf-8", "replace")

    def _whole_choice(self, n: int, tokens: list[Token]) -> dict[str, Any]:
        raise NotImplementedError

    def _piece(self, n: int, text: str | None, shown: list[Token] | None, reason: str | None) -> dict[str, Any]:
        raise NotImplementedError


class ChatReply(Reply):
    """Of /v1/chat/completions."""

    kind, chunk_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def opening(self, count: int) -> Iterator[dict[str, Any]]:
        """Who speaks."""
        for n in range(count):
            delta = {"role": "assistant", "content": "", "refusal": None}
            yield self._chunk({"index": n, "delta": delta, "logprobs": None, "finish_reason": None})

    def _whole_choice(self, n: int, tokens: list[Token]) -> dict[str, Any]:
        message = {"role": "assistant", "content": "".join(token.text for token in tokens), "refusal": None}
        logprobs = self._probabilities(self._shown(tokens)) if self._logprobs else None
        return {"index": n, "message": message, "logprobs": logprobs, "finish_reason": tokens[-1].finish_reason}

    def _piece(self, n: int, text: str | None, shown: list[Token] | None, reason: str | None) -> dict[str, Any]:
        delta = {} if text is None else {"content": text}
        logprobs = self._probabilities(shown) if shown else None
        return {"index": n, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def _probabilities(self, tokens: Sequence[Token]) -> dict[str, Any]:
        return {
            "content": [
                {
                    **self._probability(token.id, token.logprob),
                    "top_logprobs": [self._probability(*t) for t in token.top],
                }
                for token in tokens
            ],
            "refusal": None,
        }

    def _probability(self, token: int, logprob: float) -> dict[str, Any]:
        return {"token": self._text(token), "logprob": logprob, "bytes": list(self._tokenizer.bytes_of(token))}


class TextReply(Reply):
    """Of /v1/completions."""

    kind, chunk_kind, prefix = "text_completion", "text_completion", "cmpl"

    def __init__(self, model: str, tokenizer: Tokenizer, logprobs: bool, each: int) -> None:
        super().__init__(model, tokenizer, logprobs, each)
        self._offsets: dict[int, int] = {}  # of the next token in each choice's text

    def _whole_choice(self, n: int, tokens: list[Token]) -> dict[str, Any]:
        return self._piece(n, "".join(t.text for t in tokens), self._shown(tokens), tokens[-1].finish_reason)

    def _piece(self, n: int, text: str | None, shown: list[Token] | None, reason: str | None) -> dict[str, Any]:
        logprobs = self._probabilities(n, shown) if shown is not None and self._logprobs else None
        return {"index": n, "text": text or "", "logprobs": logprobs, "finish_reason": reason}

    def _probabilities(self, n: int, tokens: Sequence[Token]) -> dict[str, Any]:
        offsets = []
        for token in tokens:
            offsets.append(self._offsets.get(n, 0))
            self._offsets[n] = offsets[-1] + len(self._text(token.id))
        return {
            "tokens": [self._text(token.id) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{self._text(each): logprob for each, logprob in token.top} for token in tokens],
            "text_offset": offsets,
        }
