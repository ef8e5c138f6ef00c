"""What all routes share: bodies read strictly, and every failure answered in its shape."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from glmcpu import strict_json
from glmcpu.errors import DataError
from glmcpu.server import problems
from glmcpu.server.service import report
from glmcpu.server.telemetry import record_of

T = TypeVar("T")

LONG_CHARS = 4096  # a text longer than that is made into ids in a thread, since others wait meanwhile
_CLIENT_LEFT = 499  # nobody reads it; the log does


class _StrictRequest(Request):
    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            try:
                self._json = strict_json.parse(await self.body(), "the body", remedy="send one JSON object")
            except DataError as error:
                raise problems.bad(str(error), None, "invalid_json") from error
        return self._json


class StrictRoute(APIRoute):
    """A route whose JSON has one meaning only, and whose failures have a shape."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await answer(_StrictRequest(request.scope, request.receive))
            except ClientDisconnect:
                return Response(status_code=_CLIENT_LEFT)
            except RequestValidationError as error:
                problem = problems.of_validation(error)
            except HTTPException as error:
                if isinstance(error.__cause__, ClientDisconnect):  # before its body was complete
                    return Response(status_code=_CLIENT_LEFT)
                problem = problems.of_http(error, request)
            except Exception as error:
                problem = problems.of(error)
                if problem.status_code == 500:
                    report(error, record_of(request.scope).id)
            record_of(request.scope).figures["error"] = problem.code
            return problem.response(legacy=request.url.path == "/")

        return handle


async def aside(chars: int, work: Callable[[], T]) -> T:
    """The result of `work` on a text of so many characters, without holding up others."""
    return work() if chars <= LONG_CHARS else await asyncio.to_thread(work)
