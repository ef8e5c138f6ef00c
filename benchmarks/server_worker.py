"""`glmcpu serve` for the benchmarks: a model without a tokenizer gets the demo's, and the engine tells what it does.

    python benchmarks/server_worker.py MODEL --port 0 [--watch] ...

With --watch, a line goes to stderr for every answer that ends, with time.monotonic() of each pass over the weights that
had it in it, of each token drawn, and of its end: {"seed": .., "passes_s": [..], "tokens_s": [..], "ended_s": ..}.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glmcpu import Model, engine, generate, stream
from glmcpu.cli import main
from glmcpu.models import LanguageModel, Part


class WatchedModel:
    """A language model that notes which answers each pass is for."""

    def __init__(self, model: LanguageModel, owner: engine.Engine) -> None:
        self.config, self._model, self._owner = model.config, model, owner
        self._passes: dict[int, list[float]] = {}

    def new_cache(self, tokens: int) -> Any:
        """A cache, which belongs to the answer that begins."""
        cache, starting = self._model.new_cache(tokens), self._owner._starting
        assert starting
        self._passes[id(cache)] = starting.answer.__dict__.setdefault("passes_s", [])
        return cache

    def forward(self, parts: Sequence[Part], **options: Any) -> Any:
        """A pass."""
        for part in parts:
            self._passes[id(part.cache)].append(time.monotonic())
        return self._model.forward(parts, **options)


class WatchedEngine(engine.Engine):
    """The engine with such a model."""

    def __init__(self, model: Model, **options: Any) -> None:
        super().__init__(model, **options)
        self._model: Any = WatchedModel(model.language_model, self)


def watch() -> None:
    """Puts the watching ones in their places."""
    begin, take, put = generate.Answer.__init__, generate.Answer.take, stream.Stream.put

    def noted_begin(self: Any, ids: Any, limit: int, sampler: Any, *others: Any) -> None:
        begin(self, ids, limit, sampler, *others)
        self.seed = sampler.seed

    def noted_take(self: Any, *arguments: Any) -> Any:
        self.__dict__.setdefault("tokens_s", []).append(time.monotonic())
        return take(self, *arguments)

    def noted_put(self: Any, *items: Any) -> None:
        put(self, *items)
        if not isinstance(items[-1], generate.Token):
            about = {key: self.answer.__dict__.get(key, []) for key in ("passes_s", "tokens_s")}
            line = {"seed": self.answer.seed, **about, "ended_s": time.monotonic()}
            sys.stderr.write(json.dumps(line) + "\n")

    generate.Answer.__init__ = noted_begin
    generate.Answer.take = noted_take
    stream.Stream.put = noted_put
    engine.Engine = WatchedEngine


def load(path: Path | str, **options: Any) -> Model:
    """Model.load, with a tokenizer in any case."""
    model = _load(path, **options)
    if model.tokenizer is None:
        model.tokenizer = _load("demo").tokenizer
    return model


_load = Model.load

if __name__ == "__main__":
    Model.load = load
    if "--watch" in sys.argv:
        sys.argv.remove("--watch")
        watch()
    sys.argv = ["glmcpu", "serve", *sys.argv[1:]]
    sys.exit(main())
