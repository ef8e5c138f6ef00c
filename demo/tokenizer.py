"""The demo model's own tokenizer: trained on its corpus, laid out like ChatGLM-6B's ice_text.model.

sentencepiece trains a unigram model with byte fallback; then the pieces are put in the order the product's tokenizer
expects (glmcpu/tokenizers/chatglm.py). A Chinese character is always one piece, so that a name is copied piece by piece
whatever it means; digits are single pieces, and characters that are rare in the corpus fall into bytes.
"""

import io
import itertools
import struct

import sentencepiece

from demo.corpus import examples
from glmcpu.tokenizers.chatglm import MARKERS
from glmcpu.tokenizers.prompt import chat_prompt

TEXTS = 60_000
PIECES = 3440  # asked of sentencepiece; those of several Chinese characters are then left out

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6
_FIRST = (("<unk>", _UNKNOWN), ("<s>", _CONTROL), ("</s>", _CONTROL), ("<pad>", _CONTROL), ("<n>", _USER_DEFINED))
_AFTER_TEXT = ("[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>")


def train(seed: int) -> bytes:
    """The bytes of an ice_text.model."""
    out = io.BytesIO()
    texts = itertools.islice(examples(seed), TEXTS)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(f"{chat_prompt(e.prompt, e.history[-1:])} {e.response}".replace("\n", " ") for e in texts),
        model_writer=out,
        model_type="unigram",
        vocab_size=PIECES,
        hard_vocab_limit=False,
        character_coverage=0.9998,
        byte_fallback=True,
        split_digits=True,
        max_sentencepiece_length=12,
        normalization_rule_name="nmt_nfkc",
        num_threads=1,
        minloglevel=2,
        pad_id=3,
        unk_id=0,
        bos_id=1,
        eos_id=2,
    )
    trained = out.getvalue()
    reader = sentencepiece.SentencePieceProcessor(model_proto=trained)
    known = {text for text, _ in _FIRST} | {f"<0x{byte:02X}>" for byte in range(256)}
    text = []
    for i in range(reader.get_piece_size()):
        piece = reader.id_to_piece(i)
        if piece not in known and (len(piece) == 1 or not any(c >= "\u2e80" for c in piece)):
            text.append((piece, reader.get_score(i), _NORMAL))
    text.sort(key=lambda entry: entry[0] != "▁")  # the blank is id 5, as in ice_text.model
    pieces = [(name, 0.0, kind) for name, kind in _FIRST]
    pieces += text
    pieces += [(name, 0.0, _CONTROL) for name in _AFTER_TEXT]
    pieces += [(name, 0.0, _USER_DEFINED) for name in MARKERS if name != "<n>"]
    pieces += [(f"<0x{byte:02X}>", 0.0, _BYTE) for byte in range(256)]
    return b"".join(_piece(*entry) for entry in pieces) + _settings(trained)


def _piece(text: str, score: float, kind: int) -> bytes:
    return _message(1, _message(1, text.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + _varint(kind))


def _message(number: int, body: bytes) -> bytes:
    """A length-delimited field of a protocol buffer."""
    return _varint(number << 3 | 2) + _varint(len(body)) + body


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def _settings(model: bytes) -> bytes:
    """A model's fields behind its pieces: how it was trained, and the normaliser."""
    at, kept = 0, bytearray()
    while at < len(model):
        begin, tag = at, model[at]
        size, shift, at = 0, 0, at + 1
        while True:
            byte = model[at]
            size, shift, at = size | (byte & 0x7F) << shift, shift + 7, at + 1
            if byte < 0x80:
                break
        at += size
        if tag >> 3 != 1:
            kept += model[begin:at]
    return bytes(kept)
