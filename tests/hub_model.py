"""A model on the small hub of hub_server.py, and what the tests of a download ask about it."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from hub_server import NAME, Hub, serve

from glmcpu import limits
from glmcpu.convert.hub import Fetched, fetch
from glmcpu.errors import GlmcpuError, NetworkError

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


@contextlib.contextmanager
def serve_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with FILES, where huggingface_hub's real client finds it; its cache is tmp_path/cache."""
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


def content(fetched: Fetched) -> dict[str, bytes]:
    return {name: (fetched.folder / name).read_bytes() for name in fetched.files}


def partials(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache").rglob("*.glmcpu-partial"))


def ranges(hub: Hub) -> list[str | None]:
    """The Range header of each request to the host of large files for the first shard."""
    return [s.headers.get("range") for s in hub.seen if s.host == "cdn" and s.path.endswith(SHARD)]


def fails(hub: Hub, *words: str, kind: type[GlmcpuError] = NetworkError) -> str:
    """The one-line error of a fetch, which holds all `words` and no secret."""
    with pytest.raises(kind) as caught:
        fetch(NAME)
    message = str(caught.value)
    assert "\n" not in message
    assert "hf_secret" not in message
    for word in words:
        assert word in message
    return message
