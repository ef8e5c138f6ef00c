"""One log line for each request, without what was said; counters with few labels."""

import json
import logging
import threading
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving import CHAT, Local, chat_ids, endless, events, live, local, long_demo, until, wait_until

from glmcpu import Engine, Sampler
from glmcpu.server.app import Settings, build
from glmcpu.server.guard import Rules
from glmcpu.server.service import Service
from glmcpu.server.telemetry import PATHS

SAID = "my own question"
ASKED = {"messages": [{"role": "user", "content": SAID}], "max_tokens": 5, "temperature": 0}


def logged(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [json.loads(record.message) for record in caplog.records if record.name == "glmcpu.requests"]


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.INFO, "glmcpu.requests")
    return lambda: logged(caplog)


def sample(client: Local, name: str, **labels: str) -> float:
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for found in family.samples:
            if found.name == name and found.labels == labels:
                return found.value
    return 0.0


def test_a_line_says_what_happened_and_not_what_was_said(lines: Any) -> None:
    with local() as client:
        response = client.post(CHAT, ASKED, headers={"User-Agent": "agent", "X-Other": "header"})
    (line,) = lines()
    assert {"time", "id", "client", "method", "path", "status", "ms"} <= set(line)
    assert (line["method"], line["path"], line["status"], line["finish"]) == ("POST", CHAT, 200, "length")
    assert line["id"] == response.headers["x-request-id"]
    assert line["prompt_tokens"] == response.json()["usage"]["prompt_tokens"]
    assert (line["completion_tokens"], line["stream"]) == (5, False)
    assert line["ms"] >= line["first_ms"] >= line["queue_ms"] >= 0
    assert SAID not in json.dumps(line)
    assert not {"prompt", "answer"} & set(line)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "fields"), [(CHAT, ASKED), ("/v1/completions", {**ASKED, "prompt": SAID})])
def test_what_was_said_is_logged_when_asked_for(path: str, fields: Any, stream: bool, lines: Any) -> None:
    with local(settings=Settings(log_texts=True)) as client:
        response = client.post(path, {**fields, "stream": stream})
    (line,) = lines()
    assert SAID in line["prompt"]
    assert line["stream"] is stream
    if stream:
        assert line["answer"] == "".join(
            each["delta"].get("content", "") if path == CHAT else each["text"]
            for chunk in events(response.text)[:-1]
            for each in chunk["choices"]
        )
    else:
        choice = response.json()["choices"][0]
        assert line["answer"] == (choice["message"]["content"] if path == CHAT else choice["text"])


def test_the_official_path_logs_the_same(lines: Any) -> None:
    with local(settings=Settings(log_texts=True)) as client:
        response = client.post("/", {"prompt": SAID, "temperature": 0, "max_length": 30})
    (line,) = lines()
    assert (line["prompt"], line["answer"]) == (SAID, response.json()["response"])
    assert line["finish"] in ("stop", "length")


def test_refusals_and_unknown_paths_have_a_line_too(lines: Any) -> None:
    with local(settings=Settings(Rules(api_key="k"))) as client:
        client.get("/%1b[31m%0d%0afake")
        client.post(CHAT, {**ASKED, "n": 0, "zeta": 1}, headers={"Authorization": "Bearer k"})
        client.post(CHAT, {**ASKED, "zeta": 1}, headers={"Authorization": "Bearer k"})
    first, second, third = lines()
    assert first["status"] == 401
    assert not any(c in first["path"] for c in "\x1b\r\n")
    assert (second["status"], second["error"]) == (400, "invalid_value")
    assert third["ignored"] == ["zeta"]


def test_a_client_that_left_is_noted(lines: Any, caplog: pytest.LogCaptureFixture) -> None:
    for stream, status in ((True, 200), (False, 499)):
        caplog.clear()
        with live(long_demo()) as server:
            with server.connect() as client:
                client.sendall(server.request(endless(long_demo(), stream=stream)))
                if stream:
                    until(client, b'"content":"H')
                wait_until(lambda: server.running() == 1, "running")
            wait_until(lambda: any(line["path"] == CHAT for line in logged(caplog)), "the line")
            (line,) = [line for line in logged(caplog) if line["path"] == CHAT]
            assert line["status"] == status
            assert line["left"] is True
            assert "finish" not in line


def test_counters_count() -> None:
    with local() as client:
        usage = client.post(CHAT, ASKED).json()["usage"]
        client.post(CHAT, {**ASKED, "n": 0})
        client.get("/health")
        assert sample(client, "glmcpu_requests_total", path=CHAT, status="200") == 1
        assert sample(client, "glmcpu_requests_total", path=CHAT, status="400") == 1
        assert sample(client, "glmcpu_tokens_total", kind="prompt") == usage["prompt_tokens"]
        assert sample(client, "glmcpu_tokens_total", kind="completion") == usage["completion_tokens"]
        assert sample(client, "glmcpu_request_seconds_count", path=CHAT) == 2
        assert sample(client, "glmcpu_first_token_seconds_count") == 1
        assert client.get("/metrics").headers["content-type"].startswith("text/plain")


def test_paths_and_methods_of_strangers_make_no_new_series() -> None:
    with local() as client:
        for n in range(20):
            client.get(f"/made-up-{n}")
        client.request("MADEUP", "/v1/models/made-up")
        labels = {
            found.labels.get("path")
            for family in text_string_to_metric_families(client.get("/metrics").text)
            for found in family.samples
        }
        assert labels <= PATHS | {"other", None}
        assert sample(client, "glmcpu_requests_total", path="other", status="404") == 20


def test_gauges_show_what_runs_and_what_waits() -> None:
    go = threading.Event()
    service = Service("demo", lambda: (go.wait(), Engine(long_demo(), parallel=1))[1])
    service.start()
    client = Local(build(service, Settings()))
    assert sample(client, "glmcpu_running") == 0  # while it loads, too
    go.set()
    wait_until(lambda: not service.loading, "loading")
    forever = Sampler(temperature=0, logit_bias={long_demo().config.eos: -100})
    streams = service.submit([(chat_ids("hello"), {"max_new_tokens": 10_000, "sampler": forever})] * 3)
    wait_until(lambda: sample(client, "glmcpu_running") == 1, "running")
    assert sample(client, "glmcpu_waiting") == 2
    for stream in streams:
        stream.cancel()
    wait_until(lambda: sample(client, "glmcpu_running") == 0, "ending")
    service.close()
