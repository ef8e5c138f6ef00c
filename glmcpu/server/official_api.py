"""`POST /`, as the official api.py answers it: a prompt and the history, the answer and the history with it.

    {"prompt": "你好", "history": []} -> {"response": "..", "history": [["你好", ".."]], "status": 200, "time": ".."}

As there, a field that is missing, null or 0 has its default, except that 0 is a temperature. Rounds that do not fit are
left out, the oldest first, and the header X-Dropped-Rounds says how many.
"""

import time

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from glmcpu.generate import Options
from glmcpu.rounds import Round, fit_prompt
from glmcpu.sampling import Sampler
from glmcpu.server import choices
from glmcpu.server.fields import OFFICIAL, OfficialRequest
from glmcpu.server.problems import as_problems, bad
from glmcpu.server.routes import StrictRoute, aside
from glmcpu.server.schemas import OfficialReply, answered
from glmcpu.server.service import Service
from glmcpu.server.telemetry import record_of
from glmcpu.tokenizers.prompt import process_response

MAX_LENGTH = 2048


def router(service: Service) -> APIRouter:
    """The route."""
    routes = APIRouter(route_class=StrictRoute, tags=["official"])

    @routes.post("/", responses=answered(OfficialReply))
    async def answer(body: OfficialRequest, request: Request) -> Response:
        """Answers a prompt after a history, as the official api.py does."""
        history, model = _rounds(body.history), service.model
        length = body.max_length or MAX_LENGTH
        chars = len(body.prompt) + sum(len(text) for pair in history for text in pair)
        with as_problems("prompt"):
            ids, dropped = await aside(chars, lambda: fit_prompt(model, body.prompt, history, max_length=length))
        sampler = Sampler(temperature=body.temperature, top_p=body.top_p or OFFICIAL.top_p)
        room = max(1, min(length, model.context) - len(ids))
        options: Options = {"sampler": sampler, "max_new_tokens": room, "post": process_response}
        record = record_of(request.scope)
        record.texts["prompt"] = body.prompt
        streams = record.streams = service.submit([(ids, options)])
        try:
            (tokens,) = await choices.unless_left(request, choices.all_tokens(streams, record))
        finally:
            choices.note(record, streams)
        record.figures["finish"] = tokens[-1].finish_reason
        response = record.texts["answer"] = "".join(token.text for token in tokens)
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        found = {"response": response, "history": [*history, (body.prompt, response)], "status": 200, "time": now}
        return JSONResponse(found, headers={"X-Dropped-Rounds": str(dropped)} if dropped else None)

    return routes


def _rounds(history: list[list[str]]) -> list[Round]:
    """Pairs; [[]], the default of some clients, is none."""
    if history == [[]]:
        return []
    for place, pair in enumerate(history):
        if len(pair) != 2:
            name = f"history[{place}]"
            raise bad(f"{name} has {len(pair)} texts; expected a question and an answer", name)
    return [(question, answer) for question, answer in history]
