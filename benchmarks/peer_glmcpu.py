"""This project as a contestant of peers.py; run by it with MODEL THREADS CONTEXT SEQUENCES.

A step is Model's own forward and the choice of the likeliest token: what `generate` does for a token, without the text
and the probability. Lookup is not used: every pass gives one token. `GLMCPU_ISA` holds as everywhere.
"""

import numpy as np
from peer_worker import serve_model

import glmcpu
from glmcpu.cache import KVCache
from glmcpu.models import Part


class Glmcpu:
    """Sequences with a cache each."""

    def __init__(self, file: str, threads: int, context: int, sequences: int) -> None:
        model = glmcpu.Model.load(file, threads=threads, context=context)
        self._model = model.language_model
        self._context, self._sequences = context, sequences

    @property
    def about(self) -> str:
        from glmcpu.kernels.machine import machine

        here = machine()
        return f"glmcpu {glmcpu.__version__}, {here['isa']}, {here['threading_layer']}, on {here['cpu']}"

    def prefill(self, ids: list[int]) -> None:
        cache = self._model.new_cache(self._context)
        chosen = int(self._model.forward([Part(ids, cache)])[0].argmax())
        self._caches = [cache, *(self._copy(cache) for _ in range(self._sequences - 1))]
        self._texts = [[*ids, chosen] for _ in self._caches]

    def rewind(self, n: int) -> None:
        for cache in self._caches:
            cache.length = n
        self._texts = [text[: n + 1] for text in self._texts]

    def step(self) -> None:
        parts = [Part(text, cache) for text, cache in zip(self._texts, self._caches, strict=True)]
        for text, chosen in zip(self._texts, self._model.forward(parts).argmax(axis=1).tolist(), strict=True):
            text.append(chosen)

    def _copy(self, cache: KVCache) -> KVCache:
        """Another sequence's cache: the same numbers in memory of its own."""
        other = self._model.new_cache(self._context)
        for name, array in vars(cache).items():
            if isinstance(array, np.ndarray):
                getattr(other, name)[...] = array
        return other


if __name__ == "__main__":
    serve_model(Glmcpu)
