"""A file of questions through the engine, and a file of answers in the same order, which a later run goes on with.

    input    {"prompt": "你好", "id": 7}                        keys: batch_lines.py; blank lines are skipped
    output   {"line": 1, "digest": "5f0c..-9a1b..", "id": 7, "response": "..", "finish_reason": "stop", ..}
             {"line": 2, "digest": "77e1..-9a1b..", "error": "not valid JSON at .."}

As many lines as the engine has places are under way; of those that end early the answers wait for their turn, so memory
does not grow with the input. An answer is written when all before it are, in one append: whatever ends a run leaves
whole lines, or half of the last one. The digest of a line names the input's line and, behind the "-", the model and the
options; so the next run knows by the output alone that what is there answers this input, cuts the half line away and
goes on. A machine that fails ends the run; a line that is wrong is a line of the output with an error.
"""

import dataclasses
import hashlib
import io
import itertools
import json
import os
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from glmcpu import batch_lines, files, limits, strict_json
from glmcpu.batch_lines import Line, Options, Request
from glmcpu.engine import Engine
from glmcpu.errors import DataError, UsageError, shown
from glmcpu.model import Model
from glmcpu.packed import PackedFile
from glmcpu.rounds import require_tokenizer
from glmcpu.stream import Stream
from glmcpu.tokenizers.prompt import process_response

NAMED = 10  # lines with errors that are remembered by number
_ANEW = "name another output, or start anew with --overwrite"
_Path = str | os.PathLike[str]


@dataclasses.dataclass
class Figures:
    """What a run has done; they grow while it works.

    lines     of the input, blank ones left out        tokens        of this run's answers
    kept      that an earlier run had done             failed        lines with an error, those of earlier runs too
    done      that are in the output now               failed_lines  the numbers of the first NAMED of them
    """

    lines: int = 0
    kept: int = 0
    done: int = 0
    tokens: int = 0
    failed: int = 0
    failed_lines: list[int] = dataclasses.field(default_factory=list)

    def count(self, record: dict[str, Any]) -> None:
        """One more line of the output."""
        self.done += 1
        if "error" in record:
            self.failed += 1
            if self.failed <= NAMED:
                self.failed_lines.append(record["line"])


@dataclasses.dataclass(frozen=True)
class _Asked:
    """A line under way: the beginning of its line of the output, and where the rest comes from, if it does."""

    record: dict[str, Any]
    stream: Stream | None = None
    request: Request | None = None


class Batch:
    """One run over an input; `figures` says how far it is.

    progress(figures)   is called at each token and each line
    report(text)        is told of each line that has an error
    """

    def __init__(
        self,
        engine: Engine,
        source: _Path,
        target: _Path,
        options: Options,
        *,
        progress: Callable[[Figures], None] = lambda figures: None,
        report: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Raises DataError when there is no input or the model has no tokenizer, UsageError for one file as both."""
        require_tokenizer(engine.model)
        check_different(source, target)
        self.figures = Figures(lines=sum(1 for _ in batch_lines.lines(source)))
        self._engine, self._source, self._target, self._options = engine, source, target, options
        self._progress, self._report = progress, report
        self._made_with = made_with(engine.model, options)

    def run(self, *, overwrite: bool = False) -> Figures:
        """Answers what the output does not answer yet; with `overwrite` everything.

        Raises UsageError when the output holds something else than answers to this input with these options, and
        MachineError when the machine refuses: what is done then stays.
        """
        with files.growing(self._target) as out:
            out.cut(0 if overwrite else self._keep())
            self.figures.kept = self.figures.done
            self._progress(self.figures)
            self._answer(itertools.islice(batch_lines.lines(self._source), self.figures.kept, None), out)
        return self.figures

    # --- what an earlier run has left ---

    def _keep(self) -> int:
        """Compares the output with the input, line by line; the bytes of its whole lines."""
        asked, kept_bytes = batch_lines.lines(self._source), 0
        with io.BufferedReader(files.open_regular(self._target)) as file:
            for number in itertools.count(1):
                data = file.readline(limits.CONVERSATION_BYTES)
                if not data:
                    break
                line = next(asked, None)
                if line is None:
                    raise UsageError(f"{shown(self._target)}: has more lines than {shown(self._source)}; {_ANEW}")
                if not data.endswith(b"\n"):
                    self._check_half(data, line, number)
                    break
                self.figures.count(self._checked(data, line, number))
                kept_bytes += len(data)
        return kept_bytes

    def _checked(self, data: bytes, line: Line, number: int) -> dict[str, Any]:
        """A line of the output, when it answers that line of the input."""
        where = f"{shown(self._target)}: line {number:,}"
        try:
            record = strict_json.parse_line(data, where, "an answer")
        except DataError as error:
            raise UsageError(f"{where} is none that glmcpu batch has written; {_ANEW}") from error
        expected = self._begin(line)
        if record.get("digest") == expected["digest"] and record.get("line") == line.number:
            return record
        of, _, made_with = str(record.get("digest")).partition("-")
        if not made_with:
            raise UsageError(f"{where} is none that glmcpu batch has written; {_ANEW}")
        if of == line.digest and record.get("line") == line.number:
            raise UsageError(f"{where} was made with another model or other options; repeat those, {_ANEW}")
        raise UsageError(f"{where} answers something else than line {line.number:,} of the input is now; {_ANEW}")

    def _check_half(self, data: bytes, line: Line, number: int) -> None:
        """Raises UsageError when `data` is not the beginning of the answer to that line of the input."""
        data, begin = data.rstrip(b"\0"), _encoded(self._begin(line)).removesuffix(b"}\n")  # zeros: after a power cut
        if not data.startswith(begin) and not begin.startswith(data):
            raise UsageError(f"{shown(self._target)}: line {number:,} is none that glmcpu batch has written; {_ANEW}")

    def _begin(self, line: Line) -> dict[str, Any]:
        return {"line": line.number, "digest": f"{line.digest}-{self._made_with}"}

    # --- the work ---

    def _answer(self, asked: Iterable[Line], out: files.Growing) -> None:
        under_way: deque[_Asked] = deque()
        for line in asked:
            if len(under_way) >= self._engine.places:
                self._finish(under_way.popleft(), out)
            under_way.append(self._ask(line))
        while under_way:
            self._finish(under_way.popleft(), out)

    def _ask(self, line: Line) -> _Asked:
        record = self._begin(line)
        try:
            asked = batch_lines.parse(line)
            record |= batch_lines.identity(asked)
            request = batch_lines.request(asked, line.number, self._engine.model, self._options)
            stream = self._engine.submit(
                request.ids,
                sampler=request.sampler,
                max_new_tokens=request.max_new_tokens,
                stop=request.stop,
                post=process_response,
            )
        except (DataError, UsageError) as error:
            return _Asked(record | {"error": str(error)})
        return _Asked(record, stream, request)

    def _finish(self, asked: _Asked, out: files.Growing) -> None:
        """Waits for an answer and writes it."""
        record = asked.record
        if asked.stream and asked.request:
            try:
                record = record | self._answer_of(asked.stream, asked.request)
            except (DataError, UsageError) as error:
                record = record | {"error": str(error)}
        out.append(_encoded(record))
        self.figures.count(record)
        if "error" in record:
            self._report(f"line {record['line']:,}: {record['error']}")
        self._progress(self.figures)

    def _answer_of(self, stream: Stream, request: Request) -> dict[str, Any]:
        tokens = []
        for token in stream:
            tokens.append(token)
            self.figures.tokens += 1
            self._progress(self.figures)
        answer = {
            "response": "".join(token.text for token in tokens),
            "finish_reason": tokens[-1].finish_reason,
            "prompt_tokens": len(request.ids),
            "completion_tokens": len(tokens),
        }
        return answer | ({"dropped_rounds": request.dropped_rounds} if request.dropped_rounds else {})


def made_with(model: Model, options: Options) -> str:
    """A digest of what decides the answers beside the input: the model, and the options of every line."""
    about = {
        "model": dataclasses.asdict(PackedFile(model.path).contents),
        "context": model.context,
        "cache": model.cache_bytes(1),  # how keys and values are kept shows in the bytes they take
        "options": dataclasses.asdict(options),
    }
    if model.computed_by != "cpu":
        about["computed_by"] = model.computed_by
    if model.adapter is not None:
        about["adapter"] = model.adapter.digest()
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:8]


def check_different(source: _Path, target: _Path) -> None:
    """Raises DataError when there is no input, and UsageError when the output is the same file."""
    files.open_regular(source).close()
    if os.path.exists(target) and os.path.samefile(source, target):
        raise UsageError(f"{shown(target)}: is the input and the output; name another output")


def _encoded(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, ensure_ascii=False) + "\n").encode()
