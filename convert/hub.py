"""A model's files from a Hugging Face hub: listed, downloaded, checked, and kept in the hub's own cache.

    $HF_HUB_CACHE/models--THUDM--chatglm-6b/
        refs/main                      the commit that "main" stood for
        blobs/<digest>                 a file's content; <digest>.glmcpu-partial while it is on its way
        snapshots/<commit>/<file>      links to blobs (the files themselves where the system has no links)

That is the layout of huggingface_hub, so what its tools have fetched is used and what we fetch they can use and delete.
A run costs one request for the listing; a file that is already there costs its checksum and no request.
Only names on the list below are fetched, never code. The listing's text comes from a stranger: sizes, digests and names
are checked before they are used, and a file whose digest the hub does not state is not accepted.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import WeakFileLock, build_hf_headers  # type: ignore[attr-defined]

from glmcpu import __version__, files, limits
from glmcpu.errors import DataError, GlmcpuError, MachineError, NetworkError, UsageError, printable, shown
from glmcpu.strict_json import parse

from .download import Remote, download, is_promised
from .transport import Interrupted, host_of, may_pass, pause, retry_after, why

Progress = Callable[[str, int, int], None]

_SMALL = re.compile(r"config\.json|tokenizer_config\.json|ice_text\.model")
_SAFETENSORS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")
_TORCH = re.compile(r"pytorch_model(-\d{5}-of-\d{5})?\.bin|pytorch_model\.bin\.index\.json")

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class Fetched:
    """A model's files on this machine, as of commit `revision`; `files`: name -> SHA-256, where the hub states one."""

    folder: Path
    name: str
    revision: str
    files: dict[str, str | None]


def fetch(
    name: str, *, revision: str | None = None, offline: bool = False, progress: Progress | None = None
) -> Fetched:
    """The files of model `name` ("THUDM/chatglm-6b") at `revision` (a branch, tag or commit; None is "main").

    progress(file name, bytes done, bytes in all) counts over all files. `offline` (or HF_HUB_OFFLINE=1) makes no
    request. Raises UsageError for a malformed name, NetworkError when the hub cannot give the files as promised
    or they are incomplete offline, DataError when the model has no weights we read, MachineError for the disk.
    """
    _check_request(name, revision)
    cache = Path(huggingface_hub.constants.HF_HUB_CACHE)
    try:
        if offline or huggingface_hub.constants.HF_HUB_OFFLINE or _is_true(os.environ.get("HF_HUB_OFFLINE", "")):
            return _cached(cache, name, revision)
        endpoint = _endpoint()
        commit, remotes = _listing(endpoint, name, revision)
        return _download_all(cache, name, revision, commit, remotes, progress)
    except GlmcpuError:
        raise
    except OSError as error:
        raise MachineError(
            f"{shown(cache)}: cannot keep the download there: {files.reason(error)}; "
            "make room or set HF_HOME to a folder on another disk"
        ) from error


def _check_request(name: str, revision: str | None) -> None:
    if not _NAME.fullmatch(name) or ".." in name or "--" in name:
        raise UsageError(f"{printable(name)!r} is not a model's name on a hub; one looks like THUDM/chatglm-6b")
    if revision is not None and (len(revision) > 255 or ".." in revision or not _REVISION.fullmatch(revision)):
        raise UsageError(f"{printable(revision)!r} is not a revision; give a branch, a tag or a commit of the model")


def _is_true(value: str) -> bool:
    return value.upper() in ("1", "ON", "YES", "TRUE")


def _endpoint() -> str:
    """The hub's address, HF_ENDPOINT first (read now: the hub client read it when it was imported)."""
    endpoint = (os.environ.get("HF_ENDPOINT") or huggingface_hub.constants.ENDPOINT).rstrip("/")
    if not re.fullmatch(r"https?://[\w.@:\[\]-]+(/\S*)?", endpoint):
        raise UsageError(f"HF_ENDPOINT is {printable(endpoint)!r}; expected an address like https://huggingface.co")
    return endpoint


def _listing(endpoint: str, name: str, revision: str | None) -> tuple[str, list[Remote]]:
    """The commit that `revision` stands for, and the files to have: the small ones first."""
    info = _model_info(endpoint, name, revision)
    host, commit, siblings = host_of(endpoint), info.sha, info.siblings or []
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise NetworkError(f"{host} names no commit for {name}; is HF_ENDPOINT a Hugging Face hub?")
    if len(siblings) > limits.HUB_FILES:
        raise NetworkError(
            f"{host} lists {len(siblings):,} files for {name}; at most {limits.HUB_FILES:,} are accepted"
        )
    for sibling in siblings:
        _check_listed(sibling.rfilename, host)
    wanted = _wanted({sibling.rfilename for sibling in siblings}, name)
    chosen = {sibling.rfilename: sibling for sibling in siblings if sibling.rfilename in wanted}
    return commit, [_remote(endpoint, name, commit, chosen[file]) for file in wanted]


def _model_info(endpoint: str, name: str, revision: str | None) -> Any:
    """The hub's answer about a model; asks again when the server says "later"."""
    # Otherwise 2.x fetches a list of coding agents from the hub to report whether one is running it.
    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True
    api = huggingface_hub.HfApi(endpoint=endpoint, library_name="glmcpu", library_version=__version__)
    host, failures = host_of(endpoint), 0
    while True:
        try:
            return api.model_info(name, revision=revision, files_metadata=True, timeout=limits.DOWNLOAD_STALL_S)
        except HfHubHTTPError as error:
            status = error.response.status_code
            failures += 1
            if not may_pass(status) or failures > limits.DOWNLOAD_RETRIES:
                raise NetworkError(_refusal(error, host, name, revision)) from error
            pause(failures, Interrupted(str(status), retry_after(error.response.headers)))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise NetworkError(
                f"{host} does not answer like a Hugging Face hub (a network's login page?); check HF_ENDPOINT"
            ) from error
        except Exception as error:  # httpx's or httpx2's, by the hub client's release: only that library runs here
            raise NetworkError(
                f"{host} cannot be reached ({why(error)}); check the network and HF_ENDPOINT, "
                "or use --offline with files already downloaded"
            ) from error


def _refusal(error: HfHubHTTPError, host: str, name: str, revision: str | None) -> str:
    status = error.response.status_code
    if isinstance(error, RevisionNotFoundError):
        return f"{name} on {host} has no revision {printable(revision)!r}; check --revision"
    if isinstance(error, GatedRepoError):
        return f"{name} on {host} is gated ({status}); ask for access there and set HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return f"no such model {name} on {host} ({status}), or it is private; check the name, or set HF_TOKEN"
    if status in (401, 403):
        return f"{host} refuses {name} ({status}): it is gated or private; ask for access there and set HF_TOKEN"
    return f"{host} answers {status} for {name}; run again later or set another HF_ENDPOINT"


def _check_listed(file: object, host: str) -> None:
    """Refuses a listing with a name that could leave the folder, by the rules of POSIX or of Windows."""
    if not isinstance(file, str) or re.search(r"[\\\x00-\x1f]|^[/~]|^[A-Za-z]:|(^|/)\.\.?(/|$)", file):
        raise NetworkError(
            f"{host} lists a file named {printable(file)!r}, which no honest hub does; nothing was fetched"
        )


def _wanted(names: set[str], model: str) -> list[str]:
    """The names to have, small files first; one kind of weights only, safetensors where there are any."""
    for kind in (_SAFETENSORS, _TORCH):
        weights = sorted(n for n in names if kind.fullmatch(n))
        if any(not n.endswith(".json") for n in weights):
            small = sorted(n for n in names if _SMALL.fullmatch(n))
            return small + sorted(weights, key=lambda n: (not n.endswith(".json"), n))
    raise DataError(
        f"{model} has no weights that glmcpu reads (pytorch_model*.bin, model*.safetensors); check the name"
    )


def _remote(endpoint: str, name: str, commit: str, sibling: Any) -> Remote:
    size = sibling.lfs.size if sibling.lfs else sibling.size
    digest = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
    if type(size) is not int or size < 0 or not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise NetworkError(
            f"{host_of(endpoint)} states no size and checksum for {sibling.rfilename}; set another HF_ENDPOINT"
        )
    url = huggingface_hub.hf_hub_url(name, sibling.rfilename, revision=commit, endpoint=endpoint)
    return Remote(sibling.rfilename, url, size, digest)


def _download_all(
    cache: Path, name: str, revision: str | None, commit: str, remotes: list[Remote], progress: Progress | None
) -> Fetched:
    repo = _repo(cache, name)
    snapshot, blobs, locks = repo / "snapshots" / commit, repo / "blobs", cache / ".locks" / repo.name
    for folder in (snapshot, blobs, locks):
        folder.mkdir(parents=True, exist_ok=True)
    if revision != commit:
        with WeakFileLock(locks / "refs.lock"):
            files.write_text(repo / "refs" / (revision or "main"), commit)
    absent = [r for r in remotes if not (snapshot / r.name).is_file() and not (blobs / r.digest).is_file()]
    partial_bytes = sum(_size(_partial(blobs, r)) for r in absent)
    files.require_space(blobs, sum(r.size for r in absent) - partial_bytes, f"the download of {name}")
    headers = build_hf_headers(library_name="glmcpu", library_version=__version__)
    done, total = 0, sum(r.size for r in remotes)
    for remote in remotes:

        def advance(n: int, file: str = remote.name) -> None:
            nonlocal done
            done += n
            if progress:
                progress(file, done, total)

        with WeakFileLock(locks / f"{remote.digest}.lock"):  # a second run waits here, then finds the file
            _provide(remote, snapshot / remote.name, blobs, headers, advance)
    return Fetched(snapshot, name, commit, {r.name: r.sha256 for r in remotes})


def _provide(
    remote: Remote, target: Path, blobs: Path, headers: dict[str, str], advance: Callable[[int], None]
) -> None:
    """Makes `target` the promised file: what is there, a blob of another snapshot, or a download."""
    if is_promised(target, remote, advance):
        return
    blob, partial = blobs / remote.digest, _partial(blobs, remote)
    if not is_promised(blob, remote, advance):
        download(remote, partial, headers, advance)
        os.replace(partial, blob)
    target.unlink(missing_ok=True)
    try:
        os.symlink(os.path.join("..", "..", "blobs", blob.name), target)
    except OSError:  # Windows grants links to few; the hub's tools move the file there, too
        os.replace(blob, target)


def _cached(cache: Path, name: str, revision: str | None) -> Fetched:
    """What earlier downloads, ours or another program's, have left; no request is made."""
    repo = _repo(cache, name)
    commit = revision or "main"
    if (reference := repo / "refs" / commit).is_file():
        commit = files.read_bytes(reference, 100).decode("ascii", "replace").strip()
    snapshot = repo / "snapshots" / commit
    if not _COMMIT.fullmatch(commit) or not snapshot.is_dir():
        raise NetworkError(
            f"offline, and {name} at {printable(revision or 'main')} was never downloaded to {shown(cache)} "
            "(missing: config.json and the weights); run once without --offline"
        )
    present = {p.name for p in snapshot.iterdir() if p.is_file()}
    missing = ({"config.json"} | _needed_weights(snapshot, present)) - present
    if missing:
        raise NetworkError(
            f"offline, and {name} is incomplete in {shown(snapshot)}, missing: "
            f"{printable(', '.join(sorted(missing)), 300)}; run once without --offline"
        )
    return Fetched(snapshot, name, commit, dict.fromkeys(_wanted(present, name)))


def _needed_weights(snapshot: Path, present: set[str]) -> set[str]:
    """The weight files that must be there: one file, or all that the index names."""
    for single in ("model.safetensors", "pytorch_model.bin"):
        if single in present:
            return {single}
        if (index := f"{single}.index.json") in present:
            listed = parse(files.read_bytes(snapshot / index, limits.INDEX_BYTES), index)
            shards = listed.get("weight_map") if isinstance(listed, dict) else None
            if not isinstance(shards, dict) or not all(isinstance(s, str) for s in shards.values()):
                raise DataError(f"{shown(snapshot / index)}: has no weight_map; run once without --offline")
            return set(shards.values())
    return {"pytorch_model.bin.index.json"}


def _repo(cache: Path, name: str) -> Path:
    return cache / f"models--{name.replace('/', '--')}"


def _partial(blobs: Path, remote: Remote) -> Path:
    return blobs / f"{remote.digest}.glmcpu-partial"


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
