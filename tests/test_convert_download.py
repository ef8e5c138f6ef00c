"""One file over HTTP: resumed where it was cut off, and refused where it is not the promised one."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_model import FILES, SHARD, content, fails, partials, ranges, serve_model
from hub_server import NAME, Fault, Hub, git_blob_id

from glmcpu.convert.hub import fetch
from glmcpu.errors import MachineError


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve_model(tmp_path, monkeypatch) as hub:
        yield hub


def test_a_cut_connection_is_resumed_at_the_byte_where_it_was_cut(hub: Hub) -> None:
    hub.faults[SHARD] = [Fault(cut=100_000), Fault(cut=50_000)]
    assert content(fetch(NAME))[SHARD] == FILES[SHARD]
    assert ranges(hub) == [None, "bytes=100000-", "bytes=150000-"]


def test_progress_resets_the_count_of_failures(hub: Hub) -> None:
    hub.faults[SHARD] = [Fault(cut=c) for c in (10, 10, 100_000, 10, 100_000, 10)]
    assert content(fetch(NAME))[SHARD] == FILES[SHARD]


def test_a_server_that_keeps_cutting_is_given_up_and_the_next_run_resumes(hub: Hub, tmp_path: Path) -> None:
    hub.faults[SHARD] = [Fault(cut=1000)] * 3
    fails(hub, SHARD, "at byte 3,000 of 300,000", "after 3 attempts", "run again to go on")
    assert [p.stat().st_size for p in partials(tmp_path)] == [3000]
    hub.seen.clear()
    assert content(fetch(NAME))[SHARD] == FILES[SHARD]
    assert ranges(hub) == ["bytes=3000-"]
    assert partials(tmp_path) == []


def test_a_download_killed_by_the_user_is_resumed(hub: Hub, tmp_path: Path) -> None:
    def interrupt(name: str, done: int, total: int) -> None:
        if name == SHARD and partials(tmp_path):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(NAME, progress=interrupt)
    kept = partials(tmp_path)[0].stat().st_size
    assert kept > 0
    hub.seen.clear()
    assert content(fetch(NAME))[SHARD] == FILES[SHARD]
    assert ranges(hub) == [f"bytes={kept}-"]


def test_a_server_that_ignores_range_is_read_from_the_start(hub: Hub) -> None:
    hub.faults[SHARD] = [Fault(cut=1000), Fault(ignore_range=True)]
    assert content(fetch(NAME))[SHARD] == FILES[SHARD]


@pytest.mark.parametrize(
    "fault", [Fault(status=416), Fault(status=206), Fault(headers={"Content-Range": "bytes 5-9/300000"})]
)
def test_a_wrong_answer_to_range_starts_the_file_again(hub: Hub, fault: Fault) -> None:
    hub.faults[SHARD] = [Fault(cut=1000), fault]
    assert content(fetch(NAME))[SHARD] == FILES[SHARD]
    assert ranges(hub) == [None, "bytes=1000-", None]


def test_a_file_changed_during_a_pause_is_not_spliced(hub: Hub) -> None:
    hub.faults[SHARD] = [Fault(cut=1000, body=b"x" * len(FILES[SHARD]), headers={"ETag": '"old"'})]
    assert content(fetch(NAME))[SHARD] == FILES[SHARD]
    assert [s.headers.get("if-range") for s in hub.seen if s.host == "cdn" and s.path.endswith(SHARD)] == [
        None,
        '"old"',
    ]


def test_a_partial_file_with_wrong_bytes_is_fetched_again_from_the_start(hub: Hub, tmp_path: Path) -> None:
    hub.faults[SHARD] = [Fault(cut=1000)] * 3
    fails(hub, SHARD)
    partial = partials(tmp_path)[0]
    partial.write_bytes(b"x" * 2000)
    hub.seen.clear()
    assert content(fetch(NAME))[SHARD] == FILES[SHARD]
    assert ranges(hub) == ["bytes=2000-", None]


@pytest.mark.parametrize("name", [SHARD, "config.json"])
def test_a_wrong_byte_is_refused_and_nothing_of_it_stays(hub: Hub, tmp_path: Path, name: str) -> None:
    wrong = bytes([FILES[name][0] ^ 1]) + FILES[name][1:]
    hub.faults[name] = [Fault(body=wrong)]
    message = fails(hub, name, "checksum mismatch")
    assert (hub.siblings()[3]["lfs"]["sha256"] if name == SHARD else git_blob_id(FILES[name]))[:12] in message
    assert partials(tmp_path) == []
    assert not list((tmp_path / "cache").rglob(name))
    assert content(fetch(NAME))[name] == FILES[name]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault(body=b"<!DOCTYPE html><p>Please log in"), ["a web page"]),
        (Fault(body=b"version https://git-lfs.github.com/spec/v1\noid"), ["a Git LFS pointer"]),
        (Fault(body=FILES[SHARD][:-1]), ["sends 299999 bytes", "300,000 were promised"]),
        (Fault(body=FILES[SHARD] + b"x"), ["sends 300001 bytes"]),
        (Fault(body=FILES[SHARD] + b"x", chunked=True), ["more than the 300,000 bytes"]),
        (Fault(headers={"Content-Encoding": "gzip"}), ["compressed (gzip)"]),
        (Fault(status=404), ["lists it and answers 404"]),
        (Fault(status=403), ["403", "HF_TOKEN"]),
        (Fault(status=302, headers={"Location": "ftp://host/file"}), ["insecure address (ftp)"]),
        (Fault(status=302, headers={"Location": "http://[broken"}), ["malformed address"]),
    ],
)
def test_an_answer_that_is_not_the_file_has_its_own_sentence(
    hub: Hub, tmp_path: Path, fault: Fault, words: list[str]
) -> None:
    hub.faults[SHARD] = [fault]
    fails(hub, SHARD if not fault.headers.get("Location") else "127.0.0.1", *words)
    assert partials(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs symbolic links")
def test_a_link_in_place_of_a_partial_file_is_not_followed(hub: Hub, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    blobs = tmp_path / "cache" / "models--THUDM--chatglm-6b" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{hub.siblings()[3]['lfs']['sha256']}.glmcpu-partial").symlink_to(victim)
    fails(hub, "glmcpu-partial", kind=MachineError)
    assert victim.read_bytes() == b"precious"
