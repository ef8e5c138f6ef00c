"""The model behind a server: loading, ready, failed, closed; each with its own refusal."""

import threading

import pytest
from serving import Gate, chat_ids, demo, long_demo, started, wait_until, working

from glmcpu import BusyError, DataError, Engine, Sampler
from glmcpu.server import service as services
from glmcpu.server.problems import Problem
from glmcpu.server.service import Service


def code(service: Service) -> str:
    with pytest.raises(Problem) as caught:
        _ = service.engine
    assert caught.value.status_code == 503
    return caught.value.code


def test_while_the_model_loads_one_is_told_to_come_again() -> None:
    go = threading.Event()

    def load() -> Engine:
        go.wait()
        return Engine(demo())

    service = Service("demo", load)
    service.start()
    assert code(service) == "model_loading"
    assert service.loading
    assert working(service)
    assert service.health()[0] == 503
    assert service.health()[1]["status"] == "model_loading"
    with pytest.raises(BusyError, match="loading"):
        service.page_engine()
    go.set()
    wait_until(lambda: not service.loading, "loading")
    assert service.page_engine() is service.engine
    assert service.health() == (200, {"status": "ok", "model": "demo", "running": 0, "waiting": 0})
    service.close()
    assert code(service) == "shutting_down"
    assert not working(service)


def test_a_model_that_comes_when_the_server_ends_is_closed() -> None:
    go, made = threading.Event(), list[Engine]()

    def load() -> Engine:
        go.wait()
        made.append(Engine(demo()))
        return made[0]

    service = Service("demo", load)
    service.start()
    service.close()
    go.set()
    wait_until(lambda: bool(made) and bool(made[0].state().failure), "closing")


def test_a_failure_to_load_is_kept() -> None:
    def load() -> Engine:
        raise DataError("no model")

    service = started(load)
    assert isinstance(service.failure, DataError)
    assert not working(service)


def test_an_engine_that_has_ended_is_said() -> None:
    service = started(lambda: Engine(demo()))
    service.engine.close()
    assert code(service) == "engine_ended"
    assert service.health()[1]["status"] == "engine_ended"


def test_an_engine_that_does_not_move_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "STUCK_S", 0.0)
    gate = Gate(long_demo())
    gate.open.clear()
    with monkeypatch.context() as patched:
        patched.setattr(long_demo(), "language_model", gate)
        service = started(lambda: Engine(long_demo()))
    stream = service.submit([(chat_ids("hello"), {})])[0]
    try:
        assert gate.arrived.wait(60)
        wait_until(lambda: service.health()[0] == 503, "being stuck")
        assert service.health()[1]["status"] == "engine_stuck"
        assert service.health()[1]["running"] == 1
    finally:
        stream.cancel()
        gate.open.set()
        service.close()


def test_several_answers_are_asked_for_together_or_not_at_all() -> None:
    service = started(lambda: Engine(long_demo(), parallel=1, waiting=2))
    request = (chat_ids("hello"), {"max_new_tokens": 10_000, "sampler": Sampler(temperature=50, seed=3, top_k=0)})
    try:
        with pytest.raises(Problem) as caught:
            service.submit([request] * 4)  # type: ignore[list-item]
        assert caught.value.status_code == 429
        wait_until(lambda: service.engine.state().running + service.engine.state().waiting == 0, "leaving")
        assert len(service.submit([request] * 3)) == 3  # type: ignore[list-item]
    finally:
        service.close()
