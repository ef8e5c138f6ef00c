"""Ids in, whole characters out: the text of an answer while it is still being written.

A stream may emit only what no later id can change, and the official text changes at its end all the time: four bytes
become one emoji, " " vanishes when "." follows, "," becomes "，" before a Chinese character. Decoding everything again
at each id would cost more and more and would not say what is certain. So each official step is a stage that takes text,
passes on what is certain, and holds back the shortest tail that is not:

    stage    whole UTF-8   markers   clean-up (ten)   strip    placeholder   marks   stop strings
    holds    <= 3 bytes    "<|bl"    " '"             blanks   "[[训练"      ","     a part of one

All pieces together are `post(tokenizer.decode(ids))`, up to the first stop string. Work per id does not grow with the
length of the text. Stop strings are looked for in the finished text, so one may cross ids, bytes and replacements.
"""

import codecs
from collections.abc import Callable, Sequence

from glmcpu.errors import UsageError
from glmcpu.tokenizers import prompt
from glmcpu.tokenizers.chatglm import CLEAN_UP, MARKERS, Tokenizer, white_space


def identity(text: str) -> str:
    """The `post` of a stream that shows the text as decoded."""
    return text


class TextStream:
    """The text of ids that arrive one by one; `text` is everything emitted so far."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        post: Callable[[str], str] = identity,
        stop: Sequence[str] = (),
        *,
        clean_up: bool = True,
    ) -> None:
        """`post` is `identity` or `prompt.process_response`, `stop` the strings before which the text ends.

        `clean_up` is that of `decode`. Raises UsageError for another `post`, whose pieces nobody knows, and for an
        empty stop string.
        """
        if post not in (identity, prompt.process_response):
            raise UsageError("post of a stream must be identity or process_response; apply others to the whole text")
        if isinstance(stop, str) or not all(stop):
            raise UsageError(f"stop={stop!r} must be a list of strings, none of them empty")
        self.text = ""
        self._characters = _Characters(tokenizer)
        self._stop = _Stop(stop)
        self._stages: list[_Stage] = [_Markers(), *(_Replace(old, new) for old, new in CLEAN_UP if clean_up)]
        if post is prompt.process_response:
            self._stages += [_Strip(), _Replace(*prompt.TRAINING_TIME), _Marks()]
        self._stages.append(self._stop)

    @property
    def stopped(self) -> bool:
        """A stop string has appeared: `text` ends before it, and further ids add nothing."""
        return self._stop.found

    def push(self, token: int) -> str:
        """The text that became certain with one more id, often "".

        Ids without text (padding, unused rows, numbers outside the vocabulary) are skipped: a model may sample them.
        """
        piece = self._characters.push(token)
        for stage in self._stages:
            if not piece:
                return ""
            piece = stage.push(piece)
        self.text += piece
        return piece

    def finish(self) -> str:
        """The text held back, now that no id follows; bytes short of a character become U+FFFD."""
        piece = self._characters.finish()
        for stage in self._stages:
            piece = (stage.push(piece) if piece else "") + stage.finish()
        self.text += piece
        return piece


class _Characters:
    """Ids to sentencepiece's text. Bytes that may be the beginning of a character wait for the rest of it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []  # the ids of the waiting bytes
        self._bytes = b""
        self._begun = False

    def push(self, token: int) -> str:
        if token == self._tokenizer.pad or not 0 <= token < self._tokenizer.size:
            return ""
        self._ids.append(token)
        byte = self._tokenizer.byte_of(token)
        if byte is None:
            return self.finish()
        self._bytes += bytes([byte])
        return self._decode(len(self._ids) - _incomplete(self._bytes))

    def finish(self) -> str:
        return self._decode(len(self._ids))

    def _decode(self, count: int) -> str:
        """The text of the first `count` waiting ids."""
        ids, self._ids, self._bytes = self._ids[:count], self._ids[count:], self._bytes[count:]
        text = self._tokenizer.marked_text(ids, continued=self._begun)
        self._begun = self._begun or text != ""
        return text


class _Stage:
    """One step of the text: `push` returns what is certain and keeps the rest in `held`, which `finish` returns."""

    held = ""

    def push(self, text: str) -> str:
        raise NotImplementedError

    def finish(self) -> str:
        held, self.held = self.held, ""
        return held

    def _hold(self, text: str, count: int) -> str:
        """`text` without its last `count` characters, which are held."""
        self.held = text[len(text) - count :]
        return text[: len(text) - count]


class _Markers(_Stage):
    """Markers to white space. A marker may also come in parts: "<", "n", ">" are ordinary pieces too."""

    def push(self, text: str) -> str:
        text = self.held + text
        start = text.rfind("<")
        count = len(text) - start if start >= 0 and text[start:] in _MARKER_BEGINNINGS else 0
        return white_space(self._hold(text, count))


_MARKER_BEGINNINGS = {marker[:i] for marker in MARKERS for i in range(1, len(marker))}


class _Replace(_Stage):
    """str.replace(old, new)."""

    def __init__(self, old: str, new: str) -> None:
        self._old, self._new = old, new

    def push(self, text: str) -> str:
        *before, tail = (self.held + text).split(self._old)
        return self._new.join([*before, self._hold(tail, _overlap(tail, self._old))])


class _Strip(_Stage):
    """str.strip(): a blank is certain only when something else follows it."""

    _begun = False

    def push(self, text: str) -> str:
        body = text.rstrip()
        if not body:
            self.held += text
            return ""
        certain = self.held + body if self._begun else body.lstrip()
        self._begun, self.held = True, text[len(body) :]
        return certain

    def finish(self) -> str:
        return ""


class _Marks(_Stage):
    """prompt.full_width_marks: a mark waits for its right neighbour unless the left one has decided."""

    _left = ""  # the last character passed on

    def push(self, text: str) -> str:
        text = prompt.full_width_marks(self._left + self.held + text)
        certain = self._hold(text, int(text[-1:] in prompt.FULL_WIDTH))[len(self._left) :]
        self._left = certain[-1:] or self._left
        return certain


class _Stop(_Stage):
    """Cuts before the stop string that is complete first; of several complete at once, before the longest.

    So where the cut lies depends on the text alone, not on how ids cut it into pieces.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = tuple(strings)
        self.found = False

    def push(self, text: str) -> str:
        if self.found:
            return ""
        text = self.held + text
        places = [(place + len(string), place) for string in self._strings if (place := text.find(string)) >= 0]
        if places:
            self.found, self.held = True, ""
            return text[: min(places)[1]]
        return self._hold(text, max((_overlap(text, string) for string in self._strings), default=0))


def _overlap(text: str, string: str) -> int:
    """The length of the longest tail of `text` that `string` begins with, all of `string` excepted."""
    start = max(0, len(text) - len(string) + 1)
    while (start := text.find(string[0], start)) >= 0:
        if string.startswith(text[start:]):
            return len(text) - start
        start += 1
    return 0


def _incomplete(data: bytes) -> int:
    """How many bytes at the end of `data` are the beginning of a UTF-8 character: 0 to 3."""
    for count in range(min(3, len(data)), 0, -1):
        try:
            if codecs.utf_8_decode(data[-count:], "strict", False)[1] == 0:
                return count
        except UnicodeDecodeError:
            continue
    return 0
