"""Text to ids and back, exactly as the official tokenizer of ChatGLM-6B.

The sentencepiece library does the work; around it stand the official steps:

    encode   split at special pieces -> line breaks, tabs, runs of blanks to markers -> sentencepiece -> [gMASK] <sop>
    decode   sentencepiece -> markers become white space -> English clean-up (" ." -> "." and nine more)

So decode(encode(text)) is often not `text`: the normaliser folds full-width forms, the clean-up eats blanks. Where the
pieces lie (n = all ordinary pieces; ice_text.model has n = 130000):

    0 <unk>  1 <s>  2 </s>  3 <pad>  4 <n>  5.. text  n [MASK]  n+1 [gMASK]  n+4 <sop>  n+5 <eop>  <|tab|> blanks bytes

The vocabulary of the first weeks had 20000 image tokens in front: every id here is then higher by that number.
Special pieces inside a user's text count as such (<sop> <eop> <pad> <unk> [MASK]): the official behaviour, kept.
A lone surrogate in the text (a console's undecodable byte) is read as U+FFFD, which the normaliser makes a blank.
"""

import re
from collections.abc import Iterable, Sequence

from glmcpu.errors import DataError, printable, shown
from glmcpu.tokenizers import prompt
from glmcpu.tokenizers.model_proto import check_model

# White space has pieces of its own, because sentencepiece folds it: marker -> what it stands for.
MARKERS = {"<n>": "\n", "<|tab|>": "\t", **{f"<|blank_{k}|>": " " * k for k in range(2, 81)}}

# The clean-up of decoded English, each over the whole text, in this order.
CLEAN_UP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)

_SPECIAL = re.compile(r"(<sop>|<eop>|<pad>|<unk>|\[MASK\])")
_WHITE = re.compile("\n|\t| {2,80}")
_MARKER = re.compile("|".join(map(re.escape, MARKERS)))
_MARKER_OF = {white: marker for marker, white in MARKERS.items()}
_FROM_MASK = {"[MASK]": 0, "[gMASK]": 1, "<sop>": 4, "<eop>": 5}  # distance from [MASK]


class Tokenizer:
    """The official tokenizer over the bytes of `ice_text.model`.

    bos eos mask gmask pad unk   the ids of <sop> <eop> [MASK] [gMASK] <pad> <unk>
    size                         ids with a piece are 0..size-1; rows of the weights behind them are unused
    """

    def __init__(self, model: bytes, *, vocab_size: int, image_tokens: int = 0, name: str = "ice_text.model") -> None:
        """Reads a sentencepiece model for weights with `vocab_size` rows, the first `image_tokens` of them images.

        Raises DataError naming `name` when it is no such model, or one of another checkpoint.
        """
        name = shown(name)
        pieces = check_model(model, name)
        if image_tokens + pieces > vocab_size:
            images = f" after {image_tokens:,} image tokens" if image_tokens else ""
            raise DataError(
                f"{name}: the tokenizer has {pieces:,} pieces{images} and the weights {vocab_size:,} rows: "
                "they belong to different models; take both from the same folder"
            )
        # Imported here, because work on ids alone needs no text library.
        from sentencepiece import SentencePieceProcessor

        try:
            self._sp = SentencePieceProcessor(model_proto=model)
        except (RuntimeError, OSError, ValueError) as error:
            raise DataError(f"{name}: the sentencepiece library refuses it: {printable(error)}") from error
        self.image_tokens = image_tokens
        self.size = image_tokens + pieces
        self._check_special_pieces(name)
        self.unk, self.pad, self.mask, self.gmask, self.bos, self.eos = (
            self._id(piece) for piece in ("<unk>", "<pad>", "[MASK]", "[gMASK]", "<sop>", "<eop>")
        )
        self._special = {
            "<sop>": self.bos,
            "<eop>": self.eos,
            "<pad>": self.pad,
            "<unk>": self.unk,
            "[MASK]": self.mask,
        }

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The ids of `text`, followed by [gMASK] and <sop> unless `add_special_tokens` is false."""
        ids: list[int] = []
        # Odd parts are the special pieces themselves; blanks beside one are dropped.
        parts = _SPECIAL.split(without_surrogates(text))
        for i, part in enumerate(parts):
            if i % 2:
                ids.append(self._special[part])
                continue
            part = part.lstrip() if i > 0 else part
            part = part.rstrip() if i < len(parts) - 1 else part
            marked = _WHITE.sub(lambda match: _MARKER_OF[match[0]], part)
            ids.extend(piece + self.image_tokens for piece in self._sp.encode(marked))
        return [*ids, self.gmask, self.bos] if add_special_tokens else ids

    def encode_pair(self, source: str, target: str) -> list[int]:
        """A training example: the ids of `source`, [gMASK], <sop>, the ids of `target`, <eop>."""
        return [*self.encode(source), *self.encode(target, add_special_tokens=False), self.eos]

    def decode(
        self, ids: Iterable[int], skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool = True
    ) -> str:
        """The official text of `ids`; incomplete UTF-8 becomes U+FFFD, an image token "<image_7>".

        Raises DataError for an id that is not of a piece: negative, or in the unused rows behind the last piece.
        """
        ids = list(ids)
        self._check_ids(ids)
        skipped = set(self._special.values()) if skip_special_tokens else {self.pad}
        text = white_space(self.marked_text([i for i in ids if i not in skipped]))
        return clean_up(text) if clean_up_tokenization_spaces else text

    def marked_text(self, ids: Sequence[int], continued: bool = False) -> str:
        """sentencepiece's text of `ids`, white space still as markers; the step of `decode` that streaming shares.

        The first blank of a text is dropped; `continued` says that text stands before it, so that it stays.
        """
        pieces = [self._piece(i) for i in ids]
        # The library drops a blank only as long as nothing was output: a marker in front is output, cut away again.
        return str(self._sp.decode(["<n>", *pieces]))[3:] if continued else str(self._sp.decode(pieces))

    def byte_of(self, token: int) -> int | None:
        """The byte that a byte piece stands for; None for every other id."""
        piece = token - self.image_tokens
        return int(self._sp.id_to_piece(piece)[3:5], 16) if piece >= 0 and self._sp.is_byte(piece) else None

    def bytes_of(self, token: int) -> bytes:
        """What an id adds to a text, before any clean-up; nothing for special ones and those without a piece."""
        if not self.image_tokens <= token < self.size or token in self._special.values() or token == self.gmask:
            return b""
        byte, piece = self.byte_of(token), token - self.image_tokens
        if byte is not None:
            return bytes([byte])
        text = "" if self._sp.is_control(piece) else str(self._sp.id_to_piece(piece))
        return white_space(text.replace("\u2581", " ")).encode()

    def chat_prompt(self, query: str, history: Sequence[tuple[str, str]] = ()) -> str:
        """The text the model continues with its answer; see `prompt.chat_prompt`."""
        return prompt.chat_prompt(query, history)

    def process_response(self, text: str) -> str:
        """An answer as chat() returns it; see `prompt.process_response`."""
        return prompt.process_response(text)

    def _id(self, piece: str) -> int:
        return int(self._sp.piece_to_id(piece)) + self.image_tokens

    def _piece(self, token: int) -> str:
        if token < self.image_tokens:
            return f"<image_{token}>"
        return str(self._sp.id_to_piece(int(token) - self.image_tokens))

    def _check_ids(self, ids: Sequence[int]) -> None:
        for token in ids:
            if not 0 <= token < self.size:
                raise DataError(f"id {token:,} is not in the tokenizer, which has ids 0 to {self.size - 1:,}")

    def _check_special_pieces(self, name: str) -> None:
        mask = self._sp.piece_to_id("[MASK]")
        expected = {"<unk>": 0, "<pad>": 3, "<n>": 4} | {piece: mask + i for piece, i in _FROM_MASK.items()}
        for piece, place in expected.items():
            found = self._sp.piece_to_id(piece)
            if self._sp.id_to_piece(found) != piece:
                raise DataError(f"{name}: holds no piece {piece}: this is not ChatGLM-6B's tokenizer, ice_text.model")
            if found != place:
                raise DataError(
                    f"{name}: {piece} is piece {found:,}, and ChatGLM-6B has it at {place:,}; fetch ice_text.model"
                )


def without_surrogates(text: str) -> str:
    """`text` with surrogate pairs joined and lone surrogates, which UTF-8 cannot carry, replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def white_space(text: str) -> str:
    """`text` with each marker replaced by the white space it stands for."""
    return _MARKER.sub(lambda match: MARKERS[match[0]], text)


def clean_up(text: str) -> str:
    """`text` without the blanks that English does not write before punctuation and contractions."""
    for old, new in CLEAN_UP:
        text = text.replace(old, new)
    return text
