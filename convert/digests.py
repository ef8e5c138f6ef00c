"""Size and SHA-256 of the files a model is made of, for the packed header."""

import hashlib
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from glmcpu import files
from glmcpu.errors import DataError, MachineError


def digests_of(
    paths: Iterable[Path], known: Mapping[str, str | None] | None = None, stop: threading.Event | None = None
) -> dict[str, Any]:
    """File name -> size and SHA-256; of those that are `known` by name, the hub has vouched for the digest.

    Set `stop` from another thread to end early, with digests of no use. Errors as `sha256`.
    """
    found = {}
    for path in paths:
        digest = (known or {}).get(path.name)
        size, computed = sha256(path, stop) if digest is None else (path.stat().st_size, digest)
        found[path.name] = {"sha256": computed, "size": size}
    return found


def sha256(path: Path, stop: threading.Event | None = None) -> tuple[int, str]:
    """(bytes, digest) of a file; raises MachineError when it is not there any more or cannot be read."""
    state, size, buffer = hashlib.sha256(), 0, bytearray(1 << 20)
    try:
        with files.open_regular(path) as file:
            while not (stop and stop.is_set()) and (n := file.readinto(buffer)):
                state.update(memoryview(buffer)[:n])
                size += n
    except DataError as error:  # it was there when the checkpoint was opened
        raise MachineError(f"{error}: it was removed while it was converted; run again") from error
    return size, state.hexdigest()
