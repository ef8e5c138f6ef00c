"""Sound tokenizer models pass, and broken ones are refused with what is wrong in them."""

import random
import struct
from pathlib import Path

import pytest
from tiny_tokenizer import ROWS, message, piece, tiny_model, tiny_tokenizer

from glmcpu import limits
from glmcpu.errors import DataError
from glmcpu.tokenizers.chatglm import Tokenizer
from glmcpu.tokenizers.model_proto import check_model

OFFICIAL = Path(__file__).parents[1].parent / "shared" / "golden" / "ice_text.model"

TRIE = b"\x00" * 1024  # 256 units without children


def _character_map(blob: bytes) -> bytes:
    return piece("a", 0.0, 1) + message(3, message(2, blob))


def _unit(index: int, value: int) -> bytes:
    return struct.pack("<I", 1024) + TRIE[: 4 * index] + struct.pack("<I", value) + TRIE[4 * index + 4 :] + b"x\0"


def test_the_pieces_are_counted() -> None:
    assert check_model(tiny_model(), "t.model") == tiny_tokenizer().size


def test_the_official_model_passes() -> None:
    if not OFFICIAL.exists():
        pytest.skip("ice_text.model of ../shared is not here")
    assert check_model(OFFICIAL.read_bytes(), "ice_text.model") == 130344


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 2706249\n", r"Git LFS pointer \(69 bytes\)"),
        (b"\n <!DOCTYPE html><html>", "a web page"),
        (b"\x12\x00", "it holds no pieces"),
        (b"\x80", "a number without end"),
        (b"\xff" * 11, "a number without end"),
        (b"\x0a\x05\x0a", "beyond 3"),
        (b"\x0b", "wire type 3"),
        (b"\x0f", "wire type 7"),
        (b"\x00\x00", "cut off or damaged"),
        (b"\x08\x01", "piece 0 has wire type 0"),
        (message(1, b""), "piece 0 has 0 bytes"),
        (message(1, message(1, b"x" * 4097)), "piece 0 has 4,097 bytes"),
        (message(1, b"\x08\x01"), "field 1 of piece 0 has wire type 0"),
        (piece("a", float("nan"), 1), "score of piece 0"),
        (piece("a", float("-inf"), 1), "score of piece 0"),
        (piece("a", 0.0, 9), "unknown type 9"),
        (message(1, message(1, b"\xe4\xbd")), "piece 0 is not UTF-8"),
        (b"\x18\x01", "normaliser has wire type 0"),
        (_character_map(b"abc"), "the character map has 3 bytes"),
        (_character_map(struct.pack("<I", 1 << 31) + TRIE), "states a trie of 2,147,483,648"),
        (_character_map(_unit(0, 256 << 10)), "points outside itself"),
        (_character_map(_unit(0, 1 << 8 | 1 << 10)[:8] + struct.pack("<I", 1 << 31 | 2) + TRIE[8:] + b"x\0"), "repl"),
        (_character_map(_unit(0, 0)[:-1]), "the character map has"),
    ],
)
def test_a_broken_model_is_refused_with_what_is_wrong(data: bytes, words: str) -> None:
    with pytest.raises(DataError, match=rf"^t\.model: .*{words}"):
        check_model(data, "t.model")


def test_a_sound_character_map_passes() -> None:
    assert check_model(_character_map(_unit(0, 0)), "t.model") == 1


def test_bounds_hold_at_one_above(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TOKENIZER_PIECES", 1)
    assert check_model(piece("a", 0.0, 1), "t.model") == 1
    with pytest.raises(DataError, match="more than 1 pieces"):
        check_model(piece("a", 0.0, 1) * 2, "t.model")
    monkeypatch.setattr(limits, "TOKENIZER_BYTES", 10)
    with pytest.raises(DataError, match="at most 10"):
        check_model(piece("a", 0.0, 1), "t.model")


def test_a_model_cut_anywhere_in_its_pieces_is_a_data_error() -> None:
    for size in range(1, 400):
        with pytest.raises(DataError):
            Tokenizer(tiny_model()[:size], vocab_size=ROWS)


def test_damaged_models_give_a_data_error_or_a_working_tokenizer() -> None:
    rnd = random.Random(1)
    for _ in range(300):
        data = bytearray(tiny_model())
        for _ in range(rnd.choice((1, 3, 30))):
            data[rnd.randrange(len(data))] = rnd.randrange(256)
        try:
            tokenizer = Tokenizer(bytes(data), vocab_size=ROWS)
        except DataError:
            continue
        assert isinstance(tokenizer.decode(tokenizer.encode("你好，ＡＢ ﷽ it's\n  x")), str)
