"""A model's files from a small hub on loopback: what is asked for, believed, kept and used offline."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from hub_model import FILES, LARGE, SHARD, WANTED, content, fails, serve_model
from hub_server import COMMIT, NAME, NEW_NAME, Fault, Hub

from glmcpu import limits
from glmcpu.convert.hub import fetch
from glmcpu.errors import DataError, MachineError, NetworkError, UsageError


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve_model(tmp_path, monkeypatch) as hub:
        yield hub


def test_the_files_needed_arrive_whole_and_no_others(hub: Hub) -> None:
    fetched = fetch(NAME)
    assert fetched.revision == COMMIT
    assert content(fetched) == {n: FILES[n] for n in WANTED}
    assert set(hub.requested()) == WANTED
    assert {p.name for p in fetched.folder.iterdir()} == WANTED


def test_sha256_is_given_where_the_hub_states_it(hub: Hub) -> None:
    stated = fetch(NAME).files
    assert {n for n, digest in stated.items() if digest} == LARGE
    assert stated["ice_text.model"] == hub.siblings()[2]["lfs"]["sha256"]


def test_the_old_and_the_new_name_of_the_model_work(hub: Hub) -> None:
    assert content(fetch(NEW_NAME)) == content(fetch(NAME))


def test_safetensors_are_preferred_and_only_one_kind_is_fetched(hub: Hub) -> None:
    hub.files["model.safetensors"] = b"safe"
    fetched = fetch(NAME)
    assert "model.safetensors" in fetched.files
    assert not any(n.startswith("pytorch") for n in hub.requested())


def test_a_second_run_asks_for_the_listing_only(hub: Hub) -> None:
    fetch(NAME)
    hub.seen.clear()
    assert content(fetch(NAME)) == {n: FILES[n] for n in WANTED}
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
    assert content(fetched)["config.json"] == b"new"
    assert hub.requested() == ["config.json"]


def test_without_symlinks_the_files_themselves_are_in_the_snapshot(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("privilege not held")

    monkeypatch.setattr(os, "symlink", refuse)
    fetched = fetch(NAME)
    assert not any((fetched.folder / n).is_symlink() for n in fetched.files)
    assert content(fetched) == {n: FILES[n] for n in WANTED}


def test_progress_reaches_the_total_and_names_each_file(hub: Hub) -> None:
    calls: list[tuple[str, int, int]] = []
    total = sum(len(FILES[n]) for n in WANTED)
    for _ in range(2):
        calls.clear()
        fetch(NAME, progress=lambda *call: calls.append(call))
        assert {c[0] for c in calls} == WANTED
        assert calls[-1][1:] == (total, total)
        assert [c[1] for c in calls] == sorted(c[1] for c in calls)


@pytest.mark.parametrize("change", [b"", b"x", b"x" * 300_000])
def test_a_cached_file_that_was_damaged_is_fetched_again(hub: Hub, change: bytes) -> None:
    damaged = (fetch(NAME).folder / SHARD).resolve()
    damaged.write_bytes(change)
    hub.seen.clear()
    assert content(fetch(NAME))[SHARD] == FILES[SHARD]
    assert hub.requested() == [SHARD]


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
    fails(hub, *words, "127.0.0.1")


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
    fails(hub, "lists a file named")
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
    fails(hub, f"lists {len(FILES)} files")
    monkeypatch.setattr(limits, "HUB_FILES", len(FILES))
    fetch(NAME)


@pytest.mark.parametrize("entry", [{"size": 5}, {"size": -1, "blobId": "0" * 40}, {"size": 5, "blobId": "../x"}])
def test_a_file_without_size_or_checksum_is_refused(hub: Hub, entry: dict[str, object]) -> None:
    hub.listed["config.json"] = {"rfilename": "config.json", **entry}
    fails(hub, "no size and checksum for config.json")


def test_a_model_without_weights_is_refused(hub: Hub) -> None:
    for name in [n for n in hub.files if n.endswith(".bin")]:
        del hub.files[name]
    fails(hub, "has no weights", kind=DataError)


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
    fails(hub, SHARD)
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


def test_too_little_disk_is_found_before_the_download(hub: Hub) -> None:
    hub.listed[SHARD] = hub.siblings()[3] | {"lfs": {"size": 1 << 60, "sha256": "0" * 64, "pointerSize": 1}}
    fails(hub, "no space", NAME, kind=MachineError)
    assert hub.requested() == []


def test_a_cache_that_cannot_be_written_is_named(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"a file")
    fails(hub, "cache", "HF_HOME", kind=MachineError)


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
