"""`glmcpu serve` as a process: what it prints, how it refuses, how it ends."""

import json
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import HELLO, PATIENCE_S, Process, endless, everything, greedy, long_demo, until, wait_until

from glmcpu.server import run

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
# The command line with a model that takes long to load.
SLOW = """
import sys, time
from glmcpu import cli
from glmcpu.cli import serve
serve._engine = lambda *_, **__: time.sleep(60)
sys.exit(cli.main(sys.argv[1:]))
"""


def ended_well(server: Process, within_s: float = 20.0) -> str:
    """What it wrote last; its exit code is 0."""
    began_s = time.monotonic()
    code, rest = server.ended()
    assert code == 0, server.lines
    assert time.monotonic() - began_s < within_s
    assert "Traceback" not in rest
    return rest


def connect(url: str) -> socket.socket:
    host, _, port = url.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE_S)


def ask(client: socket.socket, fields: Any) -> None:
    body = json.dumps(fields).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    client.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)


def refused(url: str) -> bool:
    try:
        connect(url).close()
    except ConnectionError:
        return True
    return False


@POSIX
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_where_it_listens_answers_logs_and_ends_well(number: signal.Signals) -> None:
    with Process("demo", "--port", "0", "--log-text") as server:
        url = server.url
        assert url.startswith("http://127.0.0.1:")
        assert server.wait_for("ready: ").endswith(f"OpenAI's protocol at {url}/v1; Ctrl-C ends")
        reply = httpx.post(f"{url}/v1/chat/completions", json={"messages": HELLO, "temperature": 0}).json()
        assert reply["choices"][0]["message"]["content"] == greedy("hello")
        line = json.loads(server.wait_for('"path"'))
        assert (line["status"], line["answer"]) == (200, greedy("hello"))
        server.child.send_signal(number)
        assert ended_well(server) == "glmcpu: ended\n"


@POSIX
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_model_loads_ends_it_at_once(number: signal.Signals) -> None:
    with Process("demo", "--port", "0", code=SLOW) as server:
        url = server.url
        wait_until(lambda: b"model_loading" in health(url), "listening")
        server.child.send_signal(number)
        ended_well(server, within_s=9)


def health(url: str) -> bytes:
    with connect(url) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return everything(client)


@POSIX
def test_a_signal_lets_an_answer_under_way_finish() -> None:
    with Process("demo", "--port", "0", "--context", "20000") as server:
        url = server.url
        server.wait_for("ready: ")
        with connect(url) as client:
            ask(client, endless(long_demo(), stream=True, max_tokens=300))
            data = until(client, b'"content":"H')
            server.child.send_signal(signal.SIGTERM)
            data += everything(client)
        assert b"data: [DONE]" in data
        ended_well(server)


@POSIX
def test_a_second_signal_ends_it_at_once() -> None:
    with Process("demo", "--port", "0", "--context", "20000") as server:
        url = server.url
        server.wait_for("ready: ")
        with connect(url) as client:
            ask(client, endless(long_demo(), stream=True))
            until(client, b'"content":"H')
            server.child.send_signal(signal.SIGTERM)
            wait_until(lambda: refused(url), "closing the port")
            assert server.child.poll() is None
            server.child.send_signal(signal.SIGTERM)
            ended_well(server, within_s=9)


@POSIX
def test_a_log_that_nobody_reads_holds_up_nobody() -> None:
    with Process("demo", "--port", "0") as server:
        url = server.url
        server.wait_for("ready: ")
        with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
            for _ in range(1500):  # far more lines than a pipe and the queue before it hold
                assert client.get("/v1/models").status_code == 200
        server.child.send_signal(signal.SIGTERM)
        assert server.child.wait(PATIENCE_S) == 0


@POSIX
def test_a_killed_server_leaves_its_port_free() -> None:
    with Process("demo", "--port", "0", code=SLOW) as server:
        url = server.url
        with connect(url):
            server.child.kill()
            server.ended()
        run.take_port("127.0.0.1", int(url.rpartition(":")[2])).close()


def refusal(*arguments: str, **environment: str) -> tuple[int, str]:
    with Process(*arguments, **environment) as server:
        code, _ = server.ended()
        (line,) = [line for line in server.lines if "demo model that comes with" not in line]
        return code, line


def test_a_port_that_is_taken_is_one_line_before_the_model_is_touched(tmp_path: Path) -> None:
    with run.take_port("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        code, line = refusal("demo", "--port", str(port))
        assert code == 4
        assert line.startswith(f"glmcpu: error: 127.0.0.1:{port} cannot be taken (")
        broken = tmp_path / "broken.safetensors"
        broken.write_bytes(b"no model")
        assert refusal(str(broken), "--port", str(port))[0] == 4


def test_a_file_that_is_no_model_ends_it_with_the_files_error(tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no model")
    with Process(str(broken), "--port", "0") as server:
        code, _ = server.ended()
        assert code == 3
        assert "broken.safetensors" in server.lines[-1]
        assert server.lines[-1].startswith("glmcpu: error: ")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--host", "0.0.0.0"], 2, "GLMCPU_API_KEY"),  # noqa: S104
        (["--host", "256.0.0.1", "--api-key", "k"], 4, "give another --host"),
        (["--port", "65536"], 2, "65"),
        (["--parallel", "0"], 2, "parallel"),
        (["--queue", "-1"], 2, "queue"),
        (["--context", "0"], 2, "context"),
        (["--allow-origin", "*"], 2, "name origins"),
        (["--allow-origin", "example.com"], 2, "https://example.com"),
        (["--api-key", "ключ"], 2, "API key"),
    ],
    ids=str,
)
def test_options_out_of_range_are_one_line(
    arguments: list[str],
    code: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from glmcpu import cli

    monkeypatch.setattr(run, "serve", lambda *_, **__: pytest.fail("it serves"))
    before = signal.getsignal(signal.SIGINT)
    try:
        assert cli.main(["serve", "demo", *arguments]) == code
    finally:
        signal.signal(signal.SIGINT, before)
    out, err = capsys.readouterr()
    line = err.splitlines()[-1]
    assert out == ""
    assert line.startswith("glmcpu: error: ")
    assert words in line


@POSIX
def test_options_reach_the_server() -> None:
    options = ("--parallel", "1", "--queue", "0", "--context", "300", "--allow-origin", "https://app.example")
    with Process("demo", "--port", "0", *options, GLMCPU_API_KEY="sesame") as server:
        url = server.url
        server.wait_for("ready: ")
        assert httpx.get(f"{url}/v1/models").status_code == 401
        with httpx.Client(base_url=url, headers={"Authorization": "Bearer sesame"}) as client:
            reply = client.post("/v1/chat/completions", json={"messages": HELLO, "max_tokens": 301})
            assert "the context 300" in reply.json()["error"]["message"]
            reply = client.post("/v1/completions", json={"prompt": ["a", "b"], "max_tokens": 5})
            assert reply.status_code == 429
            reply = client.get("/v1/models", headers={"Origin": "https://app.example"})
            assert reply.headers["access-control-allow-origin"] == "https://app.example"
        server.child.send_signal(signal.SIGTERM)
        rest = ended_well(server)
        assert "sesame" not in "\n".join(server.lines) + rest


def test_without_its_libraries_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['fastapi'] = None; from glmcpu import cli; sys.exit(cli.main(sys.argv[1:]))"
    with Process("demo", code=code) as server:
        assert server.ended()[0] == 2
        assert 'pip install "glmcpu[server]"' in server.lines[-1]
