"""The generations. One file = one generation; the file's name is what a packed file calls it.

A generation file defines what `Generation` lists: its hyperparameters, the names and shapes of its weights, and a
forward that is given a backend and a store of weights and knows neither. What several sequences in one pass are, and
how a forward is watched, is the same for all and stands here.
"""

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from glmcpu.backends import Backend, Floats
from glmcpu.cache import KVCache
from glmcpu.formats import Weight

Observer = Callable[[int, Floats], None]


class Part(NamedTuple):
    """One sequence in a forward: all its ids so far, and the cache that holds the first of them."""

    ids: Sequence[int]
    cache: KVCache


class Store(Protocol):
    """Where weights come from: a packed file."""

    @property
    def formats(self) -> Mapping[str, str]: ...

    def weight(self, name: str, O: int, I: int) -> Weight: ...

    def vector(self, name: str, n: int) -> Floats: ...


class LanguageModel(Protocol):
    """Ids to scores. `config` has the fields every generation has: vocabulary, layers, eos and the like."""

    @property
    def config(self) -> Any: ...

    def new_cache(self, capacity: int) -> KVCache: ...

    def is_compiled(self) -> bool: ...

    def forward(
        self,
        parts: Sequence[Part],
        every: bool = False,
        after_layer: Observer | None = None,
        wanted: NDArray[np.int64] | None = None,
    ) -> Floats: ...

    def scores(self, x: Floats) -> Floats: ...


class Generation(Protocol):
    """What a generation file defines."""

    Config: type[Any]
    """A frozen dataclass of the hyperparameters."""

    def check(self, config: Any, name: str) -> None:
        """Raises DataError, beginning with `name`, for hyperparameters out of range."""

    def matrices(self, config: Any) -> dict[str, tuple[int, int]]:
        """Name -> (outputs, inputs) of every weight that has a format."""

    def vectors(self, config: Any) -> dict[str, int]:
        """Name -> length of every float32 vector."""

    def cache_bytes(self, config: Any, context: int, kind: str) -> int:
        """Memory of a full cache of a kind, one of cache.KINDS."""

    def build(self, config: Any, store: Store, backend: Backend) -> LanguageModel:
        """The model of a checked config."""


def names() -> list[str]:
    """All generations, by file name."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


@cache
def load(name: str) -> Generation:
    """The generation of that name, which must be one of `names()`."""
    module: Any = import_module(f"{__name__}.{name}")
    return cast(Generation, module)
