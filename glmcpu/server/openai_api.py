"""OpenAI's protocol: chat and text completions, whole or as server-sent events, and the model's name.

    data: {"object": "chat.completion.chunk", "choices": [{"delta": {"content": "你"}, ..}]}
    ..
    data: [DONE]

An error in the middle of a stream is `data: {"error": ..}`, and no [DONE] follows. Beside OpenAI's fields answers have
llama.cpp's `timings`. The prompt of a text completion is continued as the model does with any text.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from glmcpu import limits
from glmcpu.errors import printable
from glmcpu.generate import Constraint, Options
from glmcpu.server import choices, problems
from glmcpu.server.conversation import rounds_of
from glmcpu.server.fields import ChatRequest, CompletionRequest, Sampling, ignored
from glmcpu.server.guard import Receive, Scope, Send
from glmcpu.server.problems import Problem, bad
from glmcpu.server.replies import ChatReply, Reply, TextReply
from glmcpu.server.routes import StrictRoute, aside
from glmcpu.server.schemas import ChatCompletion, ModelList, ModelReply, TextCompletion, answered
from glmcpu.server.service import Service, report
from glmcpu.server.telemetry import Record, record_of
from glmcpu.stream import Stream
from glmcpu.tokenizers.prompt import process_response

_EVENTS = "text/event-stream"
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
_LINE_ENDS = {ord(c): f"\\u{ord(c):04x}" for c in "\x85\u2028\u2029"}  # JSON allows them; some readers split there


def router(service: Service) -> APIRouter:
    """The routes under /v1."""
    routes = APIRouter(route_class=StrictRoute, prefix="/v1", tags=["OpenAI"])
    about = {"id": service.name, "object": "model", "created": int(time.time()), "owned_by": "glmcpu"}

    @routes.get("/models", responses=answered(ModelList))
    async def models() -> Response:
        """The model that is served."""
        return JSONResponse({"object": "list", "data": [about]})

    @routes.get("/models/{name:path}", responses=answered(ModelReply))
    async def model(name: str) -> Response:
        """The model of this name."""
        if name != service.name:
            raise _no_model(service, name)
        return JSONResponse(about)

    @routes.post("/chat/completions", responses=answered(ChatCompletion, streams=True))
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Answers the last message of a conversation."""
        _check_model(service, body.model)
        query, rounds = rounds_of(body.messages)
        tokenizer, record = service.tokenizer, record_of(request.scope)
        text = tokenizer.chat_prompt(query, rounds)
        ids = await aside(len(text), lambda: tokenizer.encode(text))
        options = _options(service, body, ids, "messages", body.max_completion_tokens or body.max_tokens)
        options |= {"post": process_response, "top": body.top_logprobs}
        wanted = body.response_format

        constraints: list[Constraint | None] = [None] * body.n
        if wanted and wanted.type != "text":
            schema = wanted.json_schema.schema_ if wanted.json_schema else None
            constraints = [await _constraint(service, schema) for _ in range(body.n)]

        record.texts["prompt"] = text
        streams = service.submit([(ids, _of_choice(options, body, n, each)) for n, each in enumerate(constraints)])
        reply = ChatReply(service.name, tokenizer, body.logprobs, body.n)
        return await _answer(request, body, streams, reply)

    @routes.post("/completions", responses=answered(TextCompletion, streams=True))
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continues one text, or several."""
        _check_model(service, body.model)
        prompts = await _prompts(service, body)
        asked: list[tuple[list[int], Options]] = []
        for ids in prompts:
            options = _options(service, body, ids, "prompt", body.max_tokens)
            options["top"] = body.logprobs or 0
            asked += [(ids, _of_choice(options, body, n, None)) for n in range(body.n)]
        if len(asked) > limits.CHOICES:
            raise bad(f"{len(asked)} answers in one request, and at most {limits.CHOICES} are given", "prompt")
        record_of(request.scope).texts["prompt"] = body.prompt
        streams = service.submit(asked)
        reply = TextReply(service.name, service.tokenizer, body.logprobs is not None, body.n)
        return await _answer(request, body, streams, reply)

    return routes


async def _answer(request: Request, body: Sampling, streams: Sequence[Stream], reply: Reply) -> Response:
    record = record_of(request.scope)
    record.streams, record.figures["stream"] = streams, body.stream
    if extra := ignored(getattr(request, "_json", None), type(body)):
        record.figures["ignored"] = [printable(name, 40) for name in extra[:8]]
    if body.stream:
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        return _EventResponse(_events(streams, reply, record, with_usage), streams, record, reply.each)
    try:
        tokens = await choices.unless_left(request, choices.all_tokens(streams, record))
    finally:
        choices.note(record, streams, reply.each)
    record.figures["finish"] = tokens[0][-1].finish_reason
    record.texts["answer"] = "".join(token.text for token in tokens[0])
    return JSONResponse(reply.whole(tokens, streams))


class _EventResponse(StreamingResponse):
    """Events to a client that may leave before the first of them is asked for: the answers end all the same."""

    def __init__(self, events: AsyncIterator[str], streams: Sequence[Stream], record: Record, each: int) -> None:
        super().__init__(events, media_type=_EVENTS, headers=_HEADERS)
        self._streams, self._record, self._each = streams, record, each

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            for stream in self._streams:
                stream.cancel()
            choices.note(self._record, self._streams, self._each)
            if not self._record.figures.keys() & {"finish", "error"}:
                self._record.figures["left"] = True


async def _events(streams: Sequence[Stream], reply: Reply, record: Record, with_usage: bool) -> AsyncIterator[str]:
    def event(data: dict[str, Any]) -> str:
        if with_usage:
            data.setdefault("usage", None)
        text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
        return f"data: {text.translate(_LINE_ENDS)}\n\n"

    said: list[str] = []
    try:
        for data in reply.opening(len(streams)):
            yield event(data)
        async for choice, token in choices.tokens_of(streams, record):
            said.append(token.text if choice == 0 else "")
            for data in reply.chunks(choice, token, streams[choice]):
                yield event(data)
            if token.finish_reason and choice == 0:
                record.figures["finish"] = token.finish_reason
    except ClientDisconnect:
        return
    except Exception as error:
        problem = problems.of(error)
        if problem.status_code == 500:
            report(error, record.id)
        record.figures["error"] = problem.code
        yield event(problem.body())
        return
    finally:
        record.texts["answer"] = "".join(said)
    if with_usage:
        yield event(reply.usage(streams))
    yield "data: [DONE]\n\n"


def _check_model(service: Service, name: str) -> None:
    if name not in ("", service.name):
        raise _no_model(service, name)


def _no_model(service: Service, name: str) -> Problem:
    message = f"the model {printable(name, 80)!r} is not served here; the one served is {service.name!r}"
    return Problem(404, message, "model_not_found", param="model")


def _options(service: Service, body: Sampling, ids: list[int], param: str, tokens: int | None) -> Options:
    """The options of all choices, after what only the model can tell has been checked."""
    context = service.model.context
    if len(ids) + (tokens or 1) > context:
        asked = f" and {tokens:,} for the answer" if tokens else ""
        raise bad(
            f"the prompt has {len(ids):,} tokens{asked}, and the context {context:,}; shorten it, or ask for less",
            param,
            "context_length_exceeded",
        )
    size = service.tokenizer.size
    for key in body.logit_bias:
        if not (key.isascii() and key.isdigit() and len(key) < 9 and int(key) < size):
            what = printable(key, 40)
            raise bad(f"logit_bias: {what!r} is no token id from 0 to {size - 1:,}", "logit_bias")
    return {"max_new_tokens": tokens or context - len(ids), "stop": body.stops()}


def _of_choice(options: Options, body: Sampling, n: int, constraint: Constraint | None) -> Options:
    return {**options, "sampler": body.sampler(n), "constraint": constraint}


async def _constraint(service: Service, schema: dict[str, Any] | None) -> Constraint:
    from glmcpu.server.json_answers import ANY_OBJECT, JsonConstraint

    text = json.dumps(schema)
    if len(text) > limits.SCHEMA_BYTES:
        raise bad(f"a JSON schema of more than {limits.SCHEMA_BYTES:,} bytes", "response_format.json_schema.schema")
    tokenizer = service.tokenizer
    with problems.as_problems("response_format.json_schema.schema"):  # in a thread: the first takes half a second
        return await asyncio.to_thread(JsonConstraint, tokenizer, ANY_OBJECT if schema is None else schema)


async def _prompts(service: Service, body: CompletionRequest) -> list[list[int]]:
    prompt, tokenizer = body.prompt, service.tokenizer
    texts = [prompt] if isinstance(prompt, str) else [text for text in prompt if isinstance(text, str)]
    if not texts:
        ids = [token for token in prompt if isinstance(token, int)]
        _check_ids(ids, service)
        return [ids]
    for place, text in enumerate(texts):
        if not text:
            name = "prompt" if isinstance(prompt, str) else f"prompt[{place}]"
            raise bad(f"{name} is empty; give a text to continue", name)
    return await aside(sum(map(len, texts)), lambda: [tokenizer.encode(text) for text in texts])


def _check_ids(ids: Sequence[int], service: Service) -> None:
    config = service.model.config
    for place, token in enumerate(ids):
        if token >= config.vocabulary:
            name = f"prompt[{place}]"
            raise bad(f"{name}: id {token:,} is not in the vocabulary of {config.vocabulary:,}", name)
    if not ({config.gmask, config.mask} & set(ids) and config.bos in ids):
        raise bad("prompt: [gMASK] and <sop> must stand in it; /tokenize adds them with add_special", "prompt")
