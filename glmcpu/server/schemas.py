"""What the answers look like, for /openapi.json and the pages under /docs; nothing is checked against it at run time.

The tests do that: they ask for what the schema allows and compare the answers with it.
"""

from typing import Any, Literal

from pydantic import BaseModel

FinishReason = Literal["stop", "length"]
Responses = dict[int | str, dict[str, Any]]


class ErrorDetail(BaseModel):
    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None
    code: str


class ErrorReply(BaseModel):
    error: ErrorDetail


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Timings(BaseModel):
    queue_ms: float
    prompt_n: int
    prompt_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
    predicted_per_second: float


class TokenProbability(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class ShownToken(TokenProbability):
    top_logprobs: list[TokenProbability]


class ChatLogprobs(BaseModel):
    content: list[ShownToken]
    refusal: None


class ChatMessage(BaseModel):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(BaseModel):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    timings: Timings


class TextLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(BaseModel):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason


class TextCompletion(BaseModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage
    timings: Timings


class ModelReply(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[ModelReply]


class OfficialReply(BaseModel):
    response: str
    history: list[list[str]]
    status: Literal[200]
    time: str


class Health(BaseModel):
    status: Literal["ok", "model_loading", "shutting_down", "engine_ended", "engine_stuck"]
    model: str
    running: int
    waiting: int
    quiet_s: int | None = None


class TokenizeReply(BaseModel):
    tokens: list[int]


class DetokenizeReply(BaseModel):
    content: str


_EVENTS = "Server-sent events when stream is true: chunks of the same answer, and [DONE]"
REFUSED: Responses = {status: {"model": ErrorReply, "description": "Refused"} for status in ("4XX", "5XX")}
TEXT: Responses = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}


def answered(model: type[BaseModel], *, streams: bool = False) -> Responses:
    """What a route says of its answer; `streams`: that it may come as events."""
    content = {"text/event-stream": {"schema": {"type": "string", "description": _EVENTS}}}
    return {200: {"model": model, **({"content": content} if streams else {})}}
