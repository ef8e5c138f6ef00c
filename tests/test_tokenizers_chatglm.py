"""Text to ids and back: the official answers, special pieces, odd characters and wrong models."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizer import AFTER_TEXT, ROWS, tiny_model, tiny_tokenizer

from glmcpu.errors import DataError
from glmcpu.tokenizers.chatglm import MARKERS, Tokenizer, clean_up, without_surrogates

GOLDEN = Path(__file__).parents[1].parent / "shared" / "golden"


@pytest.fixture(scope="module")
def official() -> Tokenizer:
    path = GOLDEN / "ice_text.model"
    if not path.exists():
        pytest.skip("ice_text.model of ../shared is not here")
    return Tokenizer(path.read_bytes(), vocab_size=130528)


def _golden(name: str) -> Any:
    return json.loads((GOLDEN / "visible" / "tokenizer" / name).read_text("utf-8"))


def _bare(text: str) -> list[int]:
    return tiny_tokenizer().encode(text, add_special_tokens=False)


def test_ids_equal_the_official_ones(official: Tokenizer) -> None:
    for case in _golden("texts.json"):
        ids = official.encode(case["text"], add_special_tokens=False)
        # Two versions of the library break ties between equal scores differently.
        assert ids in (case["ids"], case.get("ids_sentencepiece_0_1_99")), case["text"]
        assert official.encode(case["text"]) == [*ids, 130001, 130004]


def test_texts_equal_the_official_ones(official: Tokenizer) -> None:
    for case in _golden("texts.json"):
        assert official.decode(case["ids"]) == case["decode_ids"]
        assert official.decode(case["ids"], clean_up_tokenization_spaces=False) == case["decode_no_cleanup"]
        assert official.decode(case["ids_with_special"]) == case["decode_with_special"]
        assert official.decode(case["ids_with_special"], skip_special_tokens=True) == case["decode_skip_special"]
    for case in _golden("decode.json"):
        assert official.decode(case["ids"]) == case["text"]
        assert official.decode(case["ids"], skip_special_tokens=True) == case["skip_special"]


def test_pairs_and_chat_prompts_equal_the_official_ones(official: Tokenizer) -> None:
    for case in _golden("pairs.json"):
        assert official.encode_pair(case["a"], case["b"]) == case["ids"]
    for case in _golden("chat_prompts.json"):
        assert official.encode(official.chat_prompt(case["query"], case["history"])) == case["input_ids"]
        assert official.process_response(official.decode(case["fake_generated"])) == case["response"]


def test_special_ids_of_the_official_tokenizer(official: Tokenizer) -> None:
    ids = (official.unk, official.pad, official.mask, official.gmask, official.bos, official.eos, official.size)
    assert ids == (0, 3, 130000, 130001, 130004, 130005, 130344)


def test_prompt_ids_end_with_gmask_and_sop() -> None:
    tokenizer = tiny_tokenizer()
    assert tokenizer.encode("") == [tokenizer.gmask, tokenizer.bos]
    assert tokenizer.encode("你好") == [*_bare("你好"), tokenizer.gmask, tokenizer.bos]
    assert tokenizer.encode_pair("你", "") == [*_bare("你"), tokenizer.gmask, tokenizer.bos, tokenizer.eos]


def test_white_space_survives_as_markers() -> None:
    text = "x\n\tdo   it" + " " * 82 + "now\n\n"
    assert tiny_tokenizer().decode(_bare(text)) == text
    assert tiny_tokenizer().marked_text(_bare(text)).count("<|blank_80|><|blank_2|>") == 1


def test_special_pieces_in_a_text_are_special_and_lose_the_blanks_beside_them() -> None:
    tokenizer = tiny_tokenizer()
    specials = [tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.unk, tokenizer.mask]
    assert _bare("<sop><eop> \n<pad>\u3000<unk>[MASK]") == specials
    assert _bare("你 \n<eop>\t 好") == [*_bare("你"), tokenizer.eos, *_bare("好")]


def test_gmask_in_a_text_is_ordinary_text() -> None:
    assert tiny_tokenizer().gmask not in _bare("[gMASK] </s> <ENC>")


def test_a_lone_surrogate_is_read_as_a_replacement_character() -> None:
    assert without_surrogates("a\ud800b\udcff") == "a\ufffdb\ufffd"
    assert without_surrogates("\ud83d\ude00") == "😀"
    assert _bare("a\ud800b") == _bare("a\ufffdb")


def test_a_negative_or_unused_id_is_refused_with_its_number() -> None:
    tokenizer = tiny_tokenizer()
    for token in (-1, tokenizer.size, ROWS - 1, 1 << 40):
        with pytest.raises(DataError, match=f"id {token:,} .* 0 to {tokenizer.size - 1:,}"):
            tokenizer.decode([5, token])


def test_incomplete_utf8_becomes_one_replacement_character_a_byte() -> None:
    ids = _bare("🧿")
    assert tiny_tokenizer().decode(ids) == "🧿"
    assert tiny_tokenizer().decode(ids[:-1]) == "���"


def test_only_the_first_blank_of_a_text_is_dropped() -> None:
    tokenizer = tiny_tokenizer()
    assert tokenizer.decode([5, 5, 5, *_bare("x")]) == "x"
    assert tokenizer.decode([tokenizer.eos, 5, *_bare("x")]) == "x"
    assert tokenizer.decode([4, 5, 5]) == "\n  "


def test_padding_vanishes_and_skipping_drops_the_five_special_tokens() -> None:
    tokenizer = tiny_tokenizer()
    ids = [tokenizer.pad, *_bare("x"), tokenizer.unk, tokenizer.mask, tokenizer.bos, *_bare("x"), tokenizer.eos]
    assert tokenizer.decode(ids) == "x ⁇  x"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "x x"
    assert tokenizer.decode([]) == ""


def test_clean_up_removes_the_blanks_english_does_not_write() -> None:
    assert clean_up("a . b ? c ! d , e ' f do n't i 'm it 's we 've they 're") == (
        "a. b? c! d, e'f don't i'm it's we've they're"
    )


def test_old_vocabulary_ids_are_higher_by_the_image_tokens() -> None:
    old, slim = tiny_tokenizer(20000), tiny_tokenizer()
    assert (old.mask, old.gmask, old.bos, old.eos) == tuple(
        i + 20000 for i in (slim.mask, slim.gmask, slim.bos, slim.eos)
    )
    text = "你好 <eop>\n hello  world"
    assert old.encode(text) == [i + 20000 for i in slim.encode(text)]
    assert old.decode(old.encode(text)) == slim.decode(slim.encode(text))
    assert old.decode([7, *old.encode("你")]) == "<image_7> 你"


def test_one_megabyte_of_one_character_takes_a_second_at_most() -> None:
    for character in ("a", " ", "\n", "你", "🧿", "!", "<n>", "[MASK]", "\ud800"):
        start = time.perf_counter()
        tiny_tokenizer().encode(character * (1_000_000 // len(character.encode("utf-8", "surrogatepass"))))
        assert time.perf_counter() - start < 2, character


def test_a_tokenizer_of_another_model_is_refused_with_both_numbers() -> None:
    size = tiny_tokenizer().size
    with pytest.raises(DataError, match=rf"t\.model: the tokenizer has {size} pieces and the weights 320 rows"):
        Tokenizer(tiny_model(), vocab_size=320, name="t.model")
    with pytest.raises(DataError, match=f"{size} pieces after 600 image tokens and the weights 1,024 rows"):
        Tokenizer(tiny_model(), vocab_size=ROWS, image_tokens=600)


@pytest.mark.parametrize("name", ["[MASK]", "[gMASK]", "<sop>", "<eop>", "<pad>", "<n>"])
def test_a_missing_special_piece_is_named_in_the_error(name: str) -> None:
    renamed = tiny_model().replace(name.encode(), name.replace("<", "{").replace("[", "{").encode(), 1)
    with pytest.raises(DataError, match=rf"holds no piece {name}".replace("[", r"\[")):
        Tokenizer(renamed, vocab_size=ROWS)


def test_a_special_piece_at_another_place_is_refused_with_both_places() -> None:
    swapped = tiny_model().replace(b"[gMASK]", b"[?MASK]").replace(b"[sMASK]", b"[gMASK]")
    mask = tiny_tokenizer().mask
    with pytest.raises(DataError, match=rf"\[gMASK\] is piece {mask + 2}, and ChatGLM-6B has it at {mask + 1}"):
        Tokenizer(swapped, vocab_size=ROWS)


def test_what_the_library_refuses_is_a_data_error() -> None:
    with pytest.raises(DataError, match="sentencepiece library refuses"):
        Tokenizer(tiny_model().replace(b"<0x41>", b"<0x42>"), vocab_size=ROWS)


def test_importing_the_tokenizer_does_not_import_sentencepiece() -> None:
    code = (
        "import sys, glmcpu.tokenizers.chatglm, glmcpu.tokenizers.streaming; sys.exit('sentencepiece' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_tiny_tokenizer_is_laid_out_like_the_real_one() -> None:
    tokenizer = tiny_tokenizer()
    assert tokenizer.size == tokenizer.mask + len(AFTER_TEXT) + len(MARKERS) - 1 + 256
    assert tokenizer.byte_of(tokenizer.size - 1) == 255
    assert tokenizer.byte_of(tokenizer.mask) is None
