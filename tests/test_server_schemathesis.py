"""What the served schema allows is answered as it says; by schemathesis, with the same few requests each time.

Three of its checks are not made, on purpose. A whole number may not be written 1.0, and only the model knows which ids
and lengths it takes: what the schema allows can be refused. Null is the same as not given: what it forbids can be
accepted. GET / leads a browser to the documentation and stands in no schema.
"""

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("schemathesis", reason="schemathesis is not installed")

import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis import checks
from serving import CHAT, TEXT, demo, started

from glmcpu import Engine
from glmcpu.server.app import Settings, build

SERVICE = started(lambda: Engine(demo()))
SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", build(SERVICE, Settings()), headers={"Host": "localhost"})
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
TAKES_ALL = ("/v1/models", "/health", "/metrics")


@pytest.fixture(scope="module", autouse=True)
def _engine() -> Iterator[None]:
    yield
    SERVICE.close()


@SCHEMA.parametrize()
@settings(
    max_examples=20,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_every_route_keeps_to_its_schema(case: Any) -> None:
    if case.operation.path in (CHAT, TEXT) and isinstance(case.body, dict):
        case.body.setdefault("max_tokens", 2)  # answers need not be long
    response = case.call_and_validate(headers={"Host": "localhost"}, checks=CHECKS)
    if case.operation.path in TAKES_ALL and case.method == "GET":
        assert response.status_code == 200
    if response.status_code == 400:
        error = response.json()["error"]
        assert error["param"] or error["code"] == "invalid_json"
