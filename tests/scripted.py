"""A model that says what a test tells it, a token whenever the test lets it; tokenizer and cache are the demo's."""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from glmcpu import Model, store
from glmcpu.models import Part


class Script:
    """The model's forward: the next id of `answer`, then the end. `hold` makes it wait for `let`."""

    def __init__(self, model: Model) -> None:
        self._inner: Any = model.language_model
        self._tokenizer: Any = model.tokenizer
        self.answer = "好的"
        self.prompts: list[str] = []  # the text of each prompt it has read
        self._held, self._passes = False, threading.Semaphore(0)

    def hold(self) -> None:
        """From now on each token waits for `let`."""
        self._held, self._passes = True, threading.Semaphore(0)

    def let(self, text: str) -> None:
        """As many more tokens may come as this text has."""
        self._passes.release(len(self._ids(text)))

    def let_go(self) -> None:
        """No token waits any more."""
        self._held = False
        self._passes.release(1000)

    def forward(self, parts: Sequence[Part], **_: Any) -> Any:
        if self._held:
            self._passes.acquire()
        config = self._inner.config
        script = [*self._ids(self.answer), config.eos]
        scores = np.zeros((len(parts), config.vocabulary), np.float32)
        for row, part in zip(scores, parts, strict=True):
            done = len(part.ids) - list(part.ids).index(config.bos) - 1
            if not done:
                self.prompts.append(self._tokenizer.decode(part.ids))
            row[script[min(done, len(script) - 1)]] = 1000
        return scores

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def scripted(context: int = 2048) -> tuple[Model, Script]:
    """A model for an engine, and what it says."""
    demo = Model.load(store.embedded(), context=context)
    script = Script(demo)
    return Model(demo.path, script, demo.tokenizer, context, demo.cache_bytes, drafts=False), script
