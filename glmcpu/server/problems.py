"""Everything a request can be refused with, in OpenAI's shape: {"error": {"message", "type", "param", "code"}}.

A message is one sentence for a person; `param` names the field, `code` is for programs. The official `POST /` has a
"status" beside it. What is no fault of the request is "server_error" and says nothing of our insides.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fastapi import HTTPException as FastApiException
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic_core import PydanticCustomError
from starlette.exceptions import HTTPException
from starlette.requests import Request

from glmcpu.errors import BusyError, DataError, MachineError, UsageError, printable

RETRY_S = 1  # what Retry-After says; an answer ends every few seconds
_INTERNAL = "the server failed on this request; its log has the cause, under this request id"


class Problem(FastApiException):
    """A refusal. FastAPI passes its own kind through wherever it is raised, hence the base class."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        extra = dict(headers or {})
        if status in (429, 503):
            extra.setdefault("Retry-After", str(RETRY_S))
        super().__init__(status, message, extra)
        self.message, self.code = printable(message, 1000), code
        self.param = None if param is None else printable(param, 200)

    def body(self) -> dict[str, Any]:
        """What the client gets."""
        kind = "server_error" if self.status_code >= 500 else "invalid_request_error"
        if self.status_code == 429:
            kind = "rate_limit_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self, legacy: bool = False) -> JSONResponse:
        """As a response; `legacy` is the official `POST /`, whose clients look for "status"."""
        body = self.body() | ({"status": self.status_code} if legacy else {})
        return JSONResponse(body, self.status_code, self.headers)


def bad(message: str, param: str | None = None, code: str = "invalid_value") -> Problem:
    """A request that can never succeed as it is."""
    return Problem(400, message, code, param=param)


def of(error: BaseException, param: str | None = None) -> Problem:
    """The refusal that a failure of the engine or the model is."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, BusyError):
        return Problem(429, str(error), "server_busy")
    if isinstance(error, UsageError | DataError):
        return bad(str(error), param)
    if isinstance(error, MachineError | MemoryError):
        return Problem(503, str(error) or "not enough memory for this request", "insufficient_resources")
    return Problem(500, _INTERNAL, "internal_error")


@contextmanager
def as_problems(param: str | None = None) -> Iterator[None]:
    """Failures inside become refusals that name `param`."""
    try:
        yield
    except (BusyError, UsageError, DataError, MachineError, MemoryError) as error:
        raise of(error, param) from error


def refuse(param: str | None, message: str) -> PydanticCustomError:
    """What a check over several fields raises, so that the one meant is named."""
    return PydanticCustomError("refused", "{message}", {"message": message, "param": param})


def of_validation(error: RequestValidationError) -> Problem:
    """What pydantic found, with the field as "messages[3].content"."""
    found = error.errors()
    # A value that is no member of a union is an error for each member: the one that fits best is complained of.
    first = max((each for each in found if each["loc"][:2] == found[0]["loc"][:2]), key=_fit)
    if first["type"] == "refused":
        return bad(first["ctx"]["message"], first["ctx"]["param"], "unsupported_or_invalid")
    places = [place for place in first["loc"][1:] if not _names_a_type(place)]
    if not places:
        return bad("the body must be a JSON object; see /docs for its fields", None, "invalid_json")
    param = "".join(f"[{place}]" if isinstance(place, int) else f".{place}" for place in places).lstrip(".")
    if first["type"] == "missing":
        return bad(f"{param} is missing", param, "missing_required_parameter")
    message = str(first["msg"])
    return bad(f"{param}: {message[:1].lower()}{message[1:]}, and is {_shown(first.get('input'))}", param)


def _fit(error: Any) -> tuple[bool, int, list[int]]:
    """How near a value came to the member of a union that has this error: right type, how deep, how far in lists."""
    place = error["loc"]
    return not error["type"].endswith("_type"), len(place), [n for n in place if isinstance(n, int)]


def _names_a_type(place: object) -> bool:
    """Pydantic adds the member of a union to the place."""
    return isinstance(place, str) and (place.startswith(("list[", "dict[", "constrained-")) or place in ("str", "bool"))


def _shown(value: object) -> str:
    text = f"a list of {len(value):,}" if isinstance(value, list) else repr(value)
    return printable("an object" if isinstance(value, dict) else text, 60)


def of_http(error: HTTPException, request: Request) -> Problem:
    """What the framework refuses: unknown paths and methods."""
    if isinstance(error, Problem):
        return error
    path = printable(request.url.path, 80)
    if error.status_code == 404:
        return Problem(404, f"there is no {path}; see /docs for what there is", "not_found")
    if error.status_code == 405:
        message = f"{printable(request.method, 20)} is not allowed for {path}"
        return Problem(405, message, "method_not_allowed", headers=error.headers)
    return Problem(error.status_code, printable(error.detail), "invalid_request")
