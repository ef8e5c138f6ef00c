"""A tokenizer like ice_text.model with a few hundred pieces, trained on the spot in a quarter of a second.

sentencepiece trains a unigram model with byte fallback on the lines below; then its pieces are put in the order of
ice_text.model, with the special pieces at the same distances and of the same types. Equal on every run.
"""

import functools
import io
import struct

import sentencepiece

from glmcpu.tokenizers.chatglm import MARKERS, Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, _, BYTE = range(1, 7)
FIRST = (("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL), ("<pad>", CONTROL), ("<n>", USER_DEFINED))
AFTER_TEXT = ("[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>")
ROWS = 1024  # of the weights: more than pieces, as in the real model

_LINES = """
the quick brown fox jumps over the lazy dog . what is this ? it isn't mine , he's late and we've gone !
hello world : how are you ; they're here . i'm fine , don't worry . a ' b ' c
the answer is one , two , three . return the value of x = [ 1 , 2 , 3 ] ; if x > 0 : print ( x )
你好 世界 今天 天气 怎么样 我 是 一个 人工智能 助手 可以 回答 问题
清华大学 在 北京 你好 吗 很 高兴 认识 你 训练 时间 是 什么 晚上 睡不着 应该 怎么办
问 : 你 是 谁 答 : 我 是 助手 , 请 问 有 什么 可以 帮 你 ? [[训练时间]] < n > | tab | blank _ 2 5 8
"""


def message(number: int, body: bytes) -> bytes:
    """A length-delimited field of a protocol buffer."""
    return varint(number << 3 | 2) + varint(len(body)) + body


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def piece(text: str, score: float, kind: int) -> bytes:
    return message(1, message(1, text.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + varint(kind))


@functools.cache
def tiny_model() -> bytes:
    """The bytes of the model file."""
    trained, settings = _train()
    reader = sentencepiece.SentencePieceProcessor(model_proto=trained)
    ids = range(reader.get_piece_size())
    known = {text for text, _ in FIRST} | {f"<0x{byte:02X}>" for byte in range(256)}
    text = [(reader.id_to_piece(i), reader.get_score(i), NORMAL) for i in ids if reader.id_to_piece(i) not in known]
    text.sort(key=lambda entry: entry[0] != "▁")  # the blank is id 5
    pieces = [(name, 0.0, kind) for name, kind in FIRST]
    pieces += text
    pieces += [(name, 0.0, CONTROL) for name in AFTER_TEXT]
    pieces += [(name, 0.0, USER_DEFINED) for name in MARKERS if name != "<n>"]
    pieces += [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    return b"".join(piece(*entry) for entry in pieces) + settings


@functools.cache
def tiny_tokenizer(image_tokens: int = 0) -> Tokenizer:
    return Tokenizer(tiny_model(), vocab_size=ROWS + image_tokens, image_tokens=image_tokens, name="tiny.model")


def _train() -> tuple[bytes, bytes]:
    """A trained model, and its part behind the pieces: settings and normaliser."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_LINES.strip().splitlines()),
        model_writer=out,
        model_type="unigram",
        vocab_size=500,
        hard_vocab_limit=False,
        character_coverage=1.0,
        byte_fallback=True,
        normalization_rule_name="nmt_nfkc",
        num_threads=1,
        minloglevel=2,
        user_defined_symbols=["<n>"],
        pad_id=3,
    )
    model = out.getvalue()
    place = 0
    while model[place] == 0x0A:  # pieces come first, each shorter than 128 bytes
        place += 2 + model[place + 1]
    return model, model[place:]
