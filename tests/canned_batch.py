"""A batch for tests: questions in a file, and an engine that answers at once by what it was asked."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tiny_talkers import loaded

from glmcpu import Sampler
from glmcpu.batch import Batch, Figures
from glmcpu.batch_lines import Options
from glmcpu.generate import Token

GREEDY = Options(Sampler(temperature=0), 12)
WARM = Options(Sampler(temperature=1.2, seed=5), 12)

QUESTIONS: list[dict[str, Any]] = [
    {"prompt": "hello"},
    {"prompt": "把苹果翻译成英文", "id": "apple"},
    {"prompt": "How old am I?", "history": [["I am 12.", "Good."]], "id": 2},
    {"prompt": "What is 45 + 38?", "max_new_tokens": 40},
    {"prompt": "你好", "history": [["a", "b"], ["c", "d"]]},
    {"prompt": "repeat: alpha beta gamma alpha beta gamma", "max_new_tokens": 1},
]


def questions(folder: Path, asked: Sequence[dict[str, Any] | str] = QUESTIONS) -> Path:
    path = folder / "in.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in asked]
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def answers(path: Path) -> list[dict[str, Any]]:
    data = path.read_bytes()
    assert not data or data.endswith(b"\n")
    return [json.loads(line) for line in data.split(b"\n")[:-1]]


class CannedStream:
    """Two tokens, or the error that `failure` is."""

    def __init__(self, texts: Sequence[str], failure: Exception | None, ended: Callable[[], None]) -> None:
        self._texts, self._failure, self._ended = texts, failure, ended

    def __iter__(self) -> Iterator[Token]:
        yield Token(7, self._texts[0], -1.0)
        if self._failure:
            raise self._failure
        yield Token(8, self._texts[1], -1.0, "stop")
        self._ended()


class CannedEngine:
    """Answers at once by what it was asked, and counts the requests under way."""

    def __init__(self, places: int = 3, failure: Callable[[int], Exception | None] = lambda n: None) -> None:
        self.model, self.places, self._failure = loaded("f32"), places, failure
        self.submitted = self.under_way = self.most = 0

    def submit(self, ids: Sequence[int], **_: Any) -> CannedStream:
        self.submitted += 1
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        return CannedStream([f" {sum(ids)}", " 你好,\n"], self._failure(self.submitted), self._end)

    def _end(self) -> None:
        self.under_way -= 1


def canned(source: Path, engine: Any = None, options: Options = GREEDY, overwrite: bool = False) -> Figures:
    return Batch(engine or CannedEngine(), source, source.with_name("out.jsonl"), options).run(overwrite=overwrite)
