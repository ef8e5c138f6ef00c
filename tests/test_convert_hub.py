"""The real huggingface_hub client against a small hub on loopback."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from hub_server import COMMIT, NAME, NEW_NAME, Fault, Hub, git_blob_id, serve

from glmcpu import limits
from glmcpu.convert.hub import Fetched, fetch
from glmcpu.errors import DataError, GlmcpuError, MachineError, NetworkError, UsageError

SHARD = "pytorch_model-00001-of-00002.bin"
INDEX = {"weight_map": {"a": SHARD, "b": "pytorch_model-00002-of-00002.bin"}}
FILES = {
    "config.json": b'{"model_type": "chatglm"}',
    "tokenizer_config.json": b"{}",
    "ice_text.model": bytes(range(256)) * 20,
    SHARD: bytes(i * 7 % 251 for i in range(300_000)),
    "pytorch_model-00002-of-00002.bin": b"second shard" * 1000,
    "pytorch_model.bin.index.json": json.dumps(INDEX).encode(),
    "modeling_chatglm.py": b"raise SystemExit('code from a checkpoint ran')",
    "README.md": b"# ChatGLM",
    ".gitattributes": b"",
}
LARGE = {"ice_text.model", SHARD, "pytorch_model-00002-of-00002.bin"}
WANTED = {n for n in FILES if n.endswith((".json", ".model", ".bin"))}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve(FILES, LARGE) as hub:
        for variable in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(limits, "DOWNLOAD_BACKOFF_S", 0.001)
        monkeypatch.setattr(limits, "DOWNLOAD_RETRIES", 2)
        monkeypatch.setattr(limits, "DOWNLOAD_PROGRESS_BYTES", 100_000)
        huggingface_hub.close_session()
        yield hub
        huggingface_hub.close_session()


def _content(fetched: Fetched) -> dict[str, bytes]:
    return {name: (fetched.folder / name).read_bytes() for name in fetched.files}


def _partials(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache").rglob("*.glmcpu-partial"))


def _ranges(hub: Hub) -> list[str | None]:
    """The Range header of each request to the host of large files for the first shard."""
    return [s.headers.get("range") for s in hub.seen if s.host == "cdn" and s.path.endswith(SHARD)]


def _fails(hub: Hub, *words: str, kind: type[GlmcpuError] = NetworkError) -> str:
    """The one-line error of a fetch, which holds all `words` and no secret."""
    with pytest.raises(kind) as caught:
        fetch(NAME)
    message = str(caught.value)
    assert "\n" not in message
    assert "hf_secret" not in message
    for word in words:
        assert word in message
    return message


def test_the_files_needed_arrive_whole_and_no_others(hub: Hub) -> None:
    fetched = fetch(NAME)
    assert fetched.revision == COMMIT
    assert _content(fetched) == {n: FILES[n] for n in WANTED}
    assert set(hub.requested()) == WANTED
    assert {p.name for p in fetched.folder.iterdir()} == WANTED


def test_sha256_is_given_where_the_hub_states_it(hub: Hub) -> None:
    stated = fetch(NAME).files
    assert {n for n, digest in stated.items() if digest} == LARGE
    assert stated["ice_text.model"] == hub.siblings()[2]["lfs"]["sha256"]


def test_the_old_and_the_new_name_of_the_model_work(hub: Hub) -> None:
    assert _content(fetch(NEW_NAME)) == _content(fetch(NAME))


def test_safetensors_are_preferred_and_only_one_kind_is_fetched(hub: Hub) -> None:
    hub.files["model.safetensors"] = b"safe"
    fetched = fetch(NAME)
    assert "model.safetensors" in fetched.files
    assert not any(n.startswith("pytorch") for n in hub.requested())


def test_a_second_run_asks_for_the_listing_only(hub: Hub) -> None:
    fetch(NAME)
    hub.seen.clear()
    assert _content(fetch(NAME)) == {n: FILES[n] for n in WANTED}
    assert hub.requested() == []


def test_what_the_hub_client_has_cached_is_used(hub: Hub, tmp_path: Path) -> None:
    cached = huggingface_hub.hf_hub_download(
        NAME, SHARD, endpoint=hub.url, cache_dir=tmp_path / "cache", revision=COMMIT
    )
    hub.seen.clear()
    assert (fetch(NAME).folder / SHARD).samefile(cached)
    assert SHARD not in hub.requested()


def test_the_hub_client_uses_what_is_fetched(hub: Hub, tmp_path: Path) -> None:
    folder = fetch(NAME).folder
    found = huggingface_hub.try_to_load_from_cache(NAME, SHARD, cache_dir=tmp_path / "cache")
    assert found == str(folder / SHARD)
    assert huggingface_hub.scan_cache_dir(tmp_path / "cache").warnings == []


def test_a_new_commit_fetches_only_what_changed(hub: Hub) -> None:
    fetch(NAME)
    hub.commit = "f" * 40
    hub.files["config.json"] = b"new"
    hub.seen.clear()
    fetched = fetch(NAME)
    assert fetched.revision == hub.commit
    assert fetched.folder.name == hub.commit
    assert _content(fetched)["config.json"] == b"new"
    assert hub.requested() == ["config.json"]


def test_without_symlinks_the_files_themselves_are_in_the_snapshot(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("privilege not held")

    monkeypatch.setattr(os, "symlink", refuse)
    fetched = fetch(NAME)
    assert not any((fetched.folder / n).is_symlink() for n in fetched.files)
    assert _content(fetched) == {n: FILES[n] for n in WANTED}


def test_progress_reaches_the_total_and_names_each_file(hub: Hub) -> None:
    calls: list[tuple[str, int, int]] = []
    total = sum(len(FILES[n]) for n in WANTED)
    for _ in range(2):
        calls.clear()
        fetch(NAME, progress=lambda *call: calls.append(call))
        assert {c[0] for c in calls} == WANTED
        assert calls[-1][1:] == (total, total)
        assert [c[1] for c in calls] == sorted(c[1] for c in calls)


def test_a_cut_connection_is_resumed_at_the_byte_where_it_was_cut(hub: Hub) -> None:
    hub.faults[SHARD] = [Fault(cut=100_000), Fault(cut=50_000)]
    assert _content(fetch(NAME))[SHARD] == FILES[SHARD]
    assert _ranges(hub) == [None, "bytes=100000-", "bytes=150000-"]


def test_progress_resets_the_count_of_failures(hub: Hub) -> None:
    hub.faults[SHARD] = [Fault(cut=c) for c in (10, 10, 100_000, 10, 100_000, 10)]
    assert _content(fetch(NAME))[SHARD] == FILES[SHARD]


def test_a_server_that_keeps_cutting_is_given_up_and_the_next_run_resumes(hub: Hub, tmp_path: Path) -> None:
    hub.faults[SHARD] = [Fault(cut=1000)] * 3
    _fails(hub, SHARD, "at byte 3,000 of 300,000", "after 3 attempts", "run again to go on")
    assert [p.stat().st_size for p in _partials(tmp_path)] == [3000]
    hub.seen.clear()
    assert _content(fetch(NAME))[SHARD] == FILES[SHARD]
    assert _ranges(hub) == ["bytes=3000-"]
    assert _partials(tmp_path) == []


def test_a_download_killed_by_the_user_is_resumed(hub: Hub, tmp_path: Path) -> None:
    def interrupt(name: str, done: int, total: int) -> None:
        if name == SHARD and _partials(tmp_path):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(NAME, progress=interrupt)
    kept = _partials(tmp_path)[0].stat().st_size
    assert kept > 0
    hub.seen.clear()
    assert _content(fetch(NAME))[SHARD] == FILES[SHARD]
    assert _ranges(hub) == [f"bytes={kept}-"]


def test_a_server_that_ignores_range_is_read_from_the_start(hub: Hub) -> None:
    hub.faults[SHARD] = [Fault(cut=1000), Fault(ignore_range=True)]
    assert _content(fetch(NAME))[SHARD] == FILES[SHARD]


@pytest.mark.parametrize(
    "fault", [Fault(status=416), Fault(status=206), Fault(headers={"Content-Range": "bytes 5-9/300000"})]
)
def test_a_wrong_answer_to_range_starts_the_file_again(hub: Hub, fault: Fault) -> None:
    hub.faults[SHARD] = [Fault(cut=1000), fault]
    assert _content(fetch(NAME))[SHARD] == FILES[SHARD]
    assert _ranges(hub) == [None, "bytes=1000-", None]


def test_a_file_changed_during_a_pause_is_not_spliced(hub: Hub) -> None:
    hub.faults[SHARD] = [Fault(cut=1000, body=b"x" * len(FILES[SHARD]), headers={"ETag": '"old"'})]
    assert _content(fetch(NAME))[SHARD] == FILES[SHARD]
    assert [s.headers.get("if-range") for s in hub.seen if s.host == "cdn" and s.path.endswith(SHARD)] == [
        None,
        '"old"',
    ]


def test_a_partial_file_with_wrong_bytes_is_fetched_again_from_the_start(hub: Hub, tmp_path: Path) -> None:
    hub.faults[SHARD] = [Fault(cut=1000)] * 3
    _fails(hub, SHARD)
    partial = _partials(tmp_path)[0]
    partial.write_bytes(b"x" * 2000)
    hub.seen.clear()
    assert _content(fetch(NAME))[SHARD] == FILES[SHARD]
    assert _ranges(hub) == ["bytes=2000-", None]


@pytest.mark.parametrize("name", [SHARD, "config.json"])
def test_a_wrong_byte_is_refused_and_nothing_of_it_stays(hub: Hub, tmp_path: Path, name: str) -> None:
    wrong = bytes([FILES[name][0] ^ 1]) + FILES[name][1:]
    hub.faults[name] = [Fault(body=wrong)]
    message = _fails(hub, name, "checksum mismatch")
    assert (hub.siblings()[3]["lfs"]["sha256"] if name == SHARD else git_blob_id(FILES[name]))[:12] in message
    assert _partials(tmp_path) == []
    assert not list((tmp_path / "cache").rglob(name))
    assert _content(fetch(NAME))[name] == FILES[name]


@pytest.mark.parametrize("change", [b"", b"x", b"x" * 300_000])
def test_a_cached_file_that_was_damaged_is_fetched_again(hub: Hub, change: bytes) -> None:
    damaged = (fetch(NAME).folder / SHARD).resolve()
    damaged.write_bytes(change)
    hub.seen.clear()
    assert _content(fetch(NAME))[SHARD] == FILES[SHARD]
    assert hub.requested() == [SHARD]


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
    _fails(hub, SHARD if not fault.headers.get("Location") else "127.0.0.1", *words)
    assert _partials(tmp_path) == []


def test_an_endless_redirect_is_refused(hub: Hub) -> None:
    hub.faults[SHARD] = [Fault(status=302, headers={"Location": f"/cdn/{SHARD}"})] * 10
    _fails(hub, "redirects more than 5 times")


def test_a_chunked_body_that_ends_early_is_resumed(hub: Hub) -> None:
    hub.faults[SHARD] = [Fault(cut=1234, chunked=True)]
    assert _content(fetch(NAME))[SHARD] == FILES[SHARD]
    assert _ranges(hub)[1] == "bytes=1234-"


def test_a_stalled_connection_is_given_up_after_the_limit(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DOWNLOAD_STALL_S", 0.1)
    monkeypatch.setattr(limits, "DOWNLOAD_RETRIES", 0)
    hub.faults[SHARD] = [Fault(stall=0.5)]
    _fails(hub, SHARD, "nothing came for 0 s")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(hub: Hub, status: int) -> None:
    hub.listing_faults = [Fault(status=status)]
    hub.faults[SHARD] = [Fault(status=status, headers={"Retry-After": "0"})]
    assert _content(fetch(NAME))[SHARD] == FILES[SHARD]


def test_a_server_that_stays_busy_is_given_up(hub: Hub) -> None:
    hub.listing_faults = [Fault(status=503)] * 3
    _fails(hub, "answers 503", NAME)
    hub.faults[SHARD] = [Fault(status=503)] * 3
    _fails(hub, "answers 503", SHARD)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault(status=404, headers={"X-Error-Code": "RepoNotFound"}), ["no such model", "check the name"]),
        (Fault(status=404), ["no such model"]),
        (Fault(status=401), ["HF_TOKEN"]),
        (Fault(status=403, headers={"X-Error-Code": "GatedRepo"}), ["gated", "HF_TOKEN"]),
        (Fault(status=403), ["refuses", "HF_TOKEN"]),
        (Fault(status=418), ["answers 418"]),
        (Fault(status=200, body=b"<html>Please log in</html>"), ["does not answer like a Hugging Face hub"]),
        (Fault(status=200, body=b"[1]"), ["does not answer like a Hugging Face hub"]),
        (Fault(status=200, body=b'{"id": "a/b", "sha": "../x", "siblings": []}'), ["names no commit"]),
    ],
)
def test_each_refusal_of_the_listing_has_its_own_sentence(hub: Hub, fault: Fault, words: list[str]) -> None:
    hub.listing_faults = [fault]
    _fails(hub, *words, "127.0.0.1")


def test_an_unknown_revision_is_named(hub: Hub) -> None:
    with pytest.raises(NetworkError, match="has no revision 'v2'"):
        fetch(NAME, revision="v2")


def test_a_commit_can_be_asked_for(hub: Hub) -> None:
    assert fetch(NAME, revision=COMMIT).revision == COMMIT
    assert fetch(NAME, revision=COMMIT, offline=True).revision == COMMIT


@pytest.mark.parametrize(
    "name",
    [
        "../../pytorch_model.bin",
        "..\\x.bin",
        "C:\\x.bin",
        "c:x",
        "/etc/passwd",
        "\\\\unc\\x",
        "a/../../b",
        "a\x00b",
        "~/x",
    ],
)
def test_a_listed_name_that_could_leave_the_folder_is_refused(hub: Hub, tmp_path: Path, name: str) -> None:
    hub.listed[name] = {"rfilename": name, "size": 1, "blobId": "0" * 40}
    _fails(hub, "lists a file named")
    assert hub.requested() == []
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "name", ["CON", "pytorch_model.bin.", "pytorch_model.bin ", "sub/pytorch_model.bin", "x" * 999]
)
def test_a_name_that_is_not_on_the_list_is_never_requested(hub: Hub, name: str) -> None:
    hub.listed[name] = {"rfilename": name, "size": 1, "blobId": "0" * 40}
    fetch(NAME)
    assert set(hub.requested()) == WANTED


def test_a_listing_without_end_is_refused(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HUB_FILES", len(FILES) - 1)
    _fails(hub, f"lists {len(FILES)} files")
    monkeypatch.setattr(limits, "HUB_FILES", len(FILES))
    fetch(NAME)


@pytest.mark.parametrize("entry", [{"size": 5}, {"size": -1, "blobId": "0" * 40}, {"size": 5, "blobId": "../x"}])
def test_a_file_without_size_or_checksum_is_refused(hub: Hub, entry: dict[str, object]) -> None:
    hub.listed["config.json"] = {"rfilename": "config.json", **entry}
    _fails(hub, "no size and checksum for config.json")


def test_a_model_without_weights_is_refused(hub: Hub) -> None:
    for name in [n for n in hub.files if n.endswith(".bin")]:
        del hub.files[name]
    _fails(hub, "has no weights", kind=DataError)


def test_the_token_goes_to_the_hub_and_to_no_other_host(hub: Hub) -> None:
    fetch(NAME)
    assert {s.headers.get("authorization") for s in hub.seen if s.host == "hub"} == {"Bearer hf_secret"}
    assert {s.headers.get("authorization") for s in hub.seen if s.host == "cdn"} == {None}


def test_nothing_but_the_listing_and_the_files_is_requested(hub: Hub) -> None:
    fetch(NAME)
    assert all("/api/models/" in s.path or "/resolve/" in s.path for s in hub.seen if s.host == "hub")


@pytest.mark.parametrize("switch", ["argument", "variable"])
def test_offline_uses_what_is_there_and_makes_no_request(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, switch: str
) -> None:
    online = fetch(NAME)
    hub.seen.clear()
    if switch == "variable":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    offline = fetch(NAME, offline=switch == "argument")
    assert (offline.folder, offline.revision) == (online.folder, online.revision)
    assert set(offline.files) == WANTED
    assert hub.seen == []


def test_offline_without_a_download_says_what_is_missing(hub: Hub) -> None:
    with pytest.raises(NetworkError, match=r"never downloaded .*config\.json.*run once without --offline"):
        fetch(NAME, offline=True)
    assert hub.seen == []


def test_offline_lists_the_missing_files_of_an_incomplete_download(hub: Hub) -> None:
    hub.faults[SHARD] = [Fault(status=404)]
    _fails(hub, SHARD)
    with pytest.raises(NetworkError, match=f"incomplete .*missing: {SHARD}, pytorch_model-00002-of-00002.bin;"):
        fetch(NAME, offline=True)


def test_offline_with_a_single_weight_file_needs_no_index(hub: Hub) -> None:
    hub.files = {"config.json": b"{}", "pytorch_model.bin": b"weights"}
    fetch(NAME)
    assert set(fetch(NAME, offline=True).files) == {"config.json", "pytorch_model.bin"}


@pytest.mark.parametrize(
    "name", ["chatglm-6b", "a/b/c", "../x", "a/..", "", "a/b\n", "-a/b", "a--b/c", "a b/c", "\x1b/x"]
)
def test_a_malformed_name_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError, match="looks like THUDM/chatglm-6b") as caught:
        fetch(name)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("revision", ["", "../x", "a//b", "a\\b", "-x", "x" * 256, "a/../b"])
def test_a_malformed_revision_is_a_usage_error(revision: str) -> None:
    with pytest.raises(UsageError, match="is not a revision"):
        fetch(NAME, revision=revision)


def test_a_malformed_endpoint_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "hf-mirror.com")
    with pytest.raises(UsageError, match=r"HF_ENDPOINT is 'hf-mirror\.com'"):
        fetch(NAME)


def test_no_connection_names_the_host_and_not_its_password(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://me:password@127.0.0.1:1")
    message = _fails(hub, "127.0.0.1:1 cannot be reached", "--offline")
    assert "password" not in message


def test_too_little_disk_is_found_before_the_download(hub: Hub) -> None:
    hub.listed[SHARD] = hub.siblings()[3] | {"lfs": {"size": 1 << 60, "sha256": "0" * 64, "pointerSize": 1}}
    _fails(hub, "no space", NAME, kind=MachineError)
    assert hub.requested() == []


def test_a_cache_that_cannot_be_written_is_named(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"a file")
    _fails(hub, "cache", "HF_HOME", kind=MachineError)


@pytest.mark.skipif(sys.platform == "win32", reason="needs symbolic links")
def test_a_link_in_place_of_a_partial_file_is_not_followed(hub: Hub, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    blobs = tmp_path / "cache" / "models--THUDM--chatglm-6b" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{hub.siblings()[3]['lfs']['sha256']}.glmcpu-partial").symlink_to(victim)
    _fails(hub, "glmcpu-partial", kind=MachineError)
    assert victim.read_bytes() == b"precious"


def test_two_runs_at_once_download_each_file_once(hub: Hub, tmp_path: Path) -> None:
    hub.faults[SHARD] = [Fault(stall=0.3)]
    code = f"from glmcpu.convert.hub import fetch; print(fetch({NAME!r}).revision)"
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "cache")}
    runs = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [run.communicate(timeout=60)[0].strip() for run in runs] == [COMMIT, COMMIT]
    assert sorted(hub.requested()) == sorted(WANTED)
