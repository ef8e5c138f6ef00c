"""A model for the tests of conversation and command line: it answers by rule, byte by byte, and computes nothing.

Run as a script it is the command line `glmcpu` with this model in place of a real one:

    python fake_model.py chat [OPTIONS]        FAKE_DELAY_S: seconds for each token; FAKE_ANSWER: what it says,
    or ECHO: the prompt, or OUT OF MEMORY: fails
"""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmcpu.errors import MachineError
from glmcpu.sampling import Sampler
from glmcpu.tokenizers import prompt

GMASK, SOP, EOP, PAD = 256, 257, 258, 259


class FakeTokenizer:
    """One id for each byte of UTF-8, and four special ids."""

    pad, size = PAD, PAD

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [*text.encode(), *([GMASK, SOP] if add_special_tokens else [])]

    def byte_of(self, token: int) -> int | None:
        return token if token < 256 else None

    def marked_text(self, ids: Sequence[int], continued: bool = False) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", "replace")

    def chat_prompt(self, query: str, history: Sequence[tuple[str, str]] = ()) -> str:
        return prompt.chat_prompt(query, history)

    def process_response(self, text: str) -> str:
        return prompt.process_response(text)


@dataclass
class FakeToken:
    id: int
    finish_reason: str | None = None
    draft: int | None = None


class FakeModel:
    """Answers `answer` (or what `answer(prompt)` gives); remembers the prompts and options it was given."""

    def __init__(self, answer: Any = "好的, 再见", context: int = 2048, delay_s: float = 0.0) -> None:
        self.tokenizer: Any = FakeTokenizer()
        self.context = context
        self.answer = answer
        self.delay_s = delay_s
        self.prompts: list[str] = []
        self.samplers: list[Sampler] = []
        self.lookups: list[bool] = []
        self.closed = 0

    def generate(
        self,
        ids: Sequence[int],
        *,
        sampler: Any = None,
        max_new_tokens: int = 512,
        progress: Any = None,
        lookup: bool = True,
    ) -> Iterator[FakeToken]:
        text = bytes(i for i in ids if i < 256).decode("utf-8", "replace")
        self.prompts.append(text)
        self.samplers.append(sampler)
        self.lookups.append(lookup)
        try:
            for layer in range(28):
                time.sleep(self.delay_s)
                if progress:
                    progress(layer + 1, 28)
            answer = self.answer(text) if callable(self.answer) else self.answer
            new = [*answer.encode("utf-8", "surrogateescape"), EOP]
            for n, token in enumerate(new[:max_new_tokens], 1):
                reason = "stop" if token == EOP else "length" if n == max_new_tokens else None
                draft = token if n % 2 else PAD  # every other one is right
                yield FakeToken(token, reason, draft if lookup else None)
                time.sleep(self.delay_s)
        finally:
            self.closed += 1


def main() -> int:
    from glmcpu import cli
    from glmcpu.cli import chat

    if "FAKE_TERMINAL" in os.environ:  # stdin is a terminal: make it the one whose Ctrl-C reaches us
        import fcntl
        import termios

        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    said = os.environ.get("FAKE_ANSWER", "好的, 再见")

    def answer(question: str) -> str:
        if said == "OUT OF MEMORY":
            raise MachineError("no memory for the cache: 9 MB asked for; lower --context")
        return question if said == "ECHO" else said

    model = FakeModel(answer, delay_s=float(os.environ.get("FAKE_DELAY_S", "0")))
    chat.find_model = lambda name: Path(name or "fake")
    chat.load_model = lambda *_, **settings: setattr(model, "context", settings["context"] or 2048) or model
    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
