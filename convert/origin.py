"""What is converted, in our own words, whatever files it is in: a checkpoint's folder, or a model packed exactly."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from glmcpu.models.chatglm import Config

from .chatglm import Source


class Tensors(Protocol):
    """Open files with tensors in them; see checkpoint.py for what is raised."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file read but a tokenizer's, sorted by name."""

    def slabs(self, name: str, rows: int) -> Iterator[NDArray[Any]]:
        """Blocks of `rows` rows, a multiple of 16, of a tensor; each is valid until the next is asked for."""

    def read(self, name: str) -> NDArray[Any]:
        """A whole tensor, in memory of its own."""


@dataclass(frozen=True)
class Origin:
    """A model that is open for reading, its tensors compared with what the config demands."""

    name: str  # for messages
    tensors: Tensors
    config: Config
    sources: Mapping[str, Source]  # of each matrix
    dtypes: Mapping[str, str]  # matrix -> f16, f32 or what else it is stored as
    vectors: Mapping[str, tuple[str, int]]  # of each vector: its name in `tensors` and the length
    tokenizer: Path | bytes | None  # its file, or what is in it
    notes: Sequence[str]  # sentences for the user: what was found and not used
    about: Mapping[str, Any]  # name, revision: for the packed header
