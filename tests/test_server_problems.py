"""Refusals: each failure has its status, and OpenAI's shape."""

import json

import pytest

pytest.importorskip("fastapi", reason="the extra server is not installed")

from glmcpu.errors import BusyError, DataError, MachineError, UsageError
from glmcpu.server import problems
from glmcpu.server.problems import Problem, as_problems, bad

FAILURES: list[tuple[BaseException, int, str, str]] = [
    (UsageError("too long"), 400, "invalid_request_error", "invalid_value"),
    (DataError("not an id"), 400, "invalid_request_error", "invalid_value"),
    (BusyError("all places are taken"), 429, "rate_limit_error", "server_busy"),
    (MachineError("no memory"), 503, "server_error", "insufficient_resources"),
    (MemoryError(), 503, "server_error", "insufficient_resources"),
    (KeyError("secret"), 500, "server_error", "internal_error"),
    (bad("no"), 400, "invalid_request_error", "invalid_value"),
]


@pytest.mark.parametrize(("error", "status", "kind", "code"), FAILURES, ids=lambda value: type(value).__name__)
def test_every_failure_has_its_status(error: BaseException, status: int, kind: str, code: str) -> None:
    problem = problems.of(error)
    found = problem.body()["error"]
    assert (problem.status_code, found["type"], found["code"]) == (status, kind, code)


def test_what_is_our_fault_says_nothing_of_our_insides() -> None:
    message = problems.of(KeyError("secret")).message
    assert "secret" not in message
    assert "KeyError" not in message
    assert "request id" in message


@pytest.mark.parametrize(("status", "retries"), [(400, None), (404, None), (429, "1"), (500, None), (503, "1")])
def test_a_refusal_that_will_pass_says_when_to_come_again(status: int, retries: str | None) -> None:
    assert Problem(status, "m", "c").response().headers.get("Retry-After") == retries


def test_a_longer_wait_may_be_asked_for() -> None:
    assert Problem(503, "m", "c", headers={"Retry-After": "9"}).response().headers["Retry-After"] == "9"


def test_the_official_shape_has_the_status_beside_the_error() -> None:
    body = json.loads(bytes(bad("no", "prompt").response(legacy=True).body))
    assert body["status"] == 400
    assert body["error"]["param"] == "prompt"
    assert "status" not in json.loads(bytes(bad("no").response().body))


def test_a_message_holds_no_control_characters_and_has_an_end() -> None:
    problem = bad("\x1b[31m\n" + "x" * 5000, "\r\n" + "y" * 5000)
    assert problem.message.startswith("\\x1b[31m\\n")
    assert len(problem.message) <= 1000
    assert problem.param is not None
    assert problem.param.startswith("\\r\\n")
    assert len(problem.param) <= 200


def test_failures_inside_name_the_field() -> None:
    with pytest.raises(Problem) as caught, as_problems("prompt"):
        raise UsageError("the question alone is too long")
    assert caught.value.param == "prompt"
    with pytest.raises(KeyError), as_problems("prompt"):
        raise KeyError
