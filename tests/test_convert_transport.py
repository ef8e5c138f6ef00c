"""Servers that stall, are busy or redirect for ever: asked again or given up, and no secret leaves."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_model import FILES, SHARD, content, fails, ranges, serve_model
from hub_server import NAME, Fault, Hub

from glmcpu import limits
from glmcpu.convert.hub import fetch


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve_model(tmp_path, monkeypatch) as hub:
        yield hub


def test_an_endless_redirect_is_refused(hub: Hub) -> None:
    hub.faults[SHARD] = [Fault(status=302, headers={"Location": f"/cdn/{SHARD}"})] * 10
    fails(hub, "redirects more than 5 times")


def test_a_chunked_body_that_ends_early_is_resumed(hub: Hub) -> None:
    hub.faults[SHARD] = [Fault(cut=1234, chunked=True)]
    assert content(fetch(NAME))[SHARD] == FILES[SHARD]
    assert ranges(hub)[1] == "bytes=1234-"


def test_a_stalled_connection_is_given_up_after_the_limit(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DOWNLOAD_STALL_S", 0.1)
    monkeypatch.setattr(limits, "DOWNLOAD_RETRIES", 0)
    hub.faults[SHARD] = [Fault(stall=0.5)]
    fails(hub, SHARD, "nothing came for 0 s")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(hub: Hub, status: int) -> None:
    hub.listing_faults = [Fault(status=status)]
    hub.faults[SHARD] = [Fault(status=status, headers={"Retry-After": "0"})]
    assert content(fetch(NAME))[SHARD] == FILES[SHARD]


def test_a_server_that_stays_busy_is_given_up(hub: Hub) -> None:
    hub.listing_faults = [Fault(status=503)] * 3
    fails(hub, "answers 503", NAME)
    hub.faults[SHARD] = [Fault(status=503)] * 3
    fails(hub, "answers 503", SHARD)


def test_the_token_goes_to_the_hub_and_to_no_other_host(hub: Hub) -> None:
    fetch(NAME)
    assert {s.headers.get("authorization") for s in hub.seen if s.host == "hub"} == {"Bearer hf_secret"}
    assert {s.headers.get("authorization") for s in hub.seen if s.host == "cdn"} == {None}


def test_no_connection_names_the_host_and_not_its_password(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://me:password@127.0.0.1:1")
    message = fails(hub, "127.0.0.1:1 cannot be reached", "--offline")
    assert "password" not in message
