"""A stream of ids as text: the pieces together are the decoded text, and nothing shown is taken back."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizer import ROWS, tiny_tokenizer

from glmcpu.errors import UsageError
from glmcpu.tokenizers.chatglm import Tokenizer
from glmcpu.tokenizers.prompt import process_response
from glmcpu.tokenizers.streaming import TextStream, identity

GOLDEN = Path(__file__).parents[1].parent / "shared" / "golden"
POSTS = pytest.mark.parametrize("post", [identity, process_response])


def _byte(value: int) -> int:
    return tiny_tokenizer().size - 256 + value


def _ids(text: str) -> list[int]:
    return tiny_tokenizer().encode(text, add_special_tokens=False)


def _ids_by_byte(text: str) -> list[int]:
    return [_byte(value) for value in text.encode()]


def _stream(ids: list[int], post: Callable[[str], str] = identity, stop: tuple[str, ...] = ()) -> list[str]:
    stream = TextStream(tiny_tokenizer(), post, stop)
    pieces = [*map(stream.push, ids), stream.finish()]
    assert "".join(pieces) == stream.text
    assert stream.finish() == ""
    return pieces


def _rare() -> list[int]:
    """Ids whose neighbours matter: white space, specials, punctuation, bytes that begin and continue characters."""
    tokenizer = tiny_tokenizer()
    near = [i for i in range(5, tokenizer.mask) if set(tokenizer.marked_text([4, i])[3:]) <= set(" .,!?:;'nmsvre<>[]|")]
    odd = [0, tokenizer.pad, 4, 5, tokenizer.mask, tokenizer.bos, tokenizer.eos, *_ids("\t  你 好 [[训练时间]]")]
    return near + odd + [_byte(b) for b in b"\xe4\xbd\xa0\xf0\x9f\x98\x80\xed\xc0\xc3 .<\n"]


IDS = st.lists(st.sampled_from(_rare()) | st.integers(0, tiny_tokenizer().size - 1), max_size=24)


@POSTS
@given(ids=IDS)
@settings(max_examples=400, deadline=None, derandomize=True)
def test_all_pieces_together_are_the_decoded_text(post: Callable[[str], str], ids: list[int]) -> None:
    assert "".join(_stream(ids, post)) == post(tiny_tokenizer().decode(ids))


@POSTS
@given(text=st.text(alphabet="<n>|tablk_128 .?!,'smvre中文[训练时间]:;\n\t\U0001f9ff\ufffd", max_size=40))
@settings(max_examples=400, deadline=None, derandomize=True)
def test_text_arriving_byte_by_byte_is_the_decoded_text(post: Callable[[str], str], text: str) -> None:
    ids = _ids_by_byte(text)
    assert "".join(_stream(ids, post)) == post(tiny_tokenizer().decode(ids))


@given(ids=IDS, places=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 6)), min_size=1, max_size=3))
@settings(max_examples=400, deadline=None, derandomize=True)
def test_the_text_ends_before_the_stop_string_that_is_complete_first(
    ids: list[int], places: list[tuple[int, int]]
) -> None:
    whole = tiny_tokenizer().decode(ids)
    stop = tuple(whole[start : start + size] or "###" for start, size in places)
    ends = [(whole.find(string) + len(string), whole.find(string)) for string in stop if string in whole]
    assert "".join(_stream(ids, stop=stop)) == (whole[: min(ends)[1]] if ends else whole)


@pytest.mark.parametrize("suffix", ["", "_processed"])
def test_every_step_is_the_official_one_without_its_uncertain_end(suffix: str) -> None:
    path = GOLDEN / "visible" / "tokenizer" / "streaming.json"
    if not path.exists():
        pytest.skip("the goldens of ../shared are not here")
    tokenizer = Tokenizer((GOLDEN / "ice_text.model").read_bytes(), vocab_size=130528)
    for case in json.loads(path.read_text("utf-8")):
        stream = TextStream(tokenizer, process_response if suffix else identity)
        for token, official in zip(case["ids"], case["steps" + suffix], strict=True):
            stream.push(token)
            assert official.startswith(stream.text)
            assert set(official[len(stream.text) :]) <= set("\ufffd ',?:")
        stream.finish()
        assert stream.text == case["final" + suffix]


def test_a_character_appears_whole_with_its_last_byte() -> None:
    assert _stream([*_ids_by_byte("🧿你"), *_ids_by_byte("é")]) == ["", "", "", "🧿", "", "", "你", "", "é", ""]


def test_broken_utf8_appears_as_soon_as_it_is_certain_or_at_the_end() -> None:
    assert _stream([_byte(0xE4), _byte(0xBD), _byte(0x41)]) == ["", "", "��A", ""]
    assert _stream([_byte(0xFF), _byte(0xF0), _byte(0x9F)]) == ["�", "", "", "��"]


def test_only_what_may_still_change_is_held_back() -> None:
    assert _stream(_ids_by_byte("a .b 'x"))[:-1] == ["a", "", ".", "b", "", "", " 'x"]
    assert _stream(_ids_by_byte("a<b<n>"))[:-1] == ["a", "", "<b", "", "", "\n"]
    assert _stream(_ids_by_byte("a,b!? x"), process_response) == ["a", "", ",b", "", "!", "", "? x", ""]


def test_a_mark_after_a_chinese_character_does_not_wait() -> None:
    assert _stream([*_ids_by_byte("你"), _byte(ord(",")), _byte(ord(","))], process_response)[2:] == [
        "你",
        "，",
        "",
        ",",
    ]


def test_blanks_around_a_response_never_appear() -> None:
    assert _stream(_ids_by_byte("  a  "), process_response) == ["", "", "a", "", "", ""]


def test_padding_and_ids_outside_the_vocabulary_add_nothing_and_split_no_character() -> None:
    pad = tiny_tokenizer().pad
    first, *rest = _ids_by_byte("你")
    assert "".join(_stream([first, pad, ROWS - 1, *rest, -1, 1 << 40])) == "你"


def test_a_control_piece_ends_a_character() -> None:
    first, *rest = _ids_by_byte("你")
    ids = [first, tiny_tokenizer().eos, *rest]
    assert "".join(_stream(ids)) == tiny_tokenizer().decode(ids) == "���"


def test_a_stop_string_is_cut_once_and_nothing_of_it_appears() -> None:
    stream = TextStream(tiny_tokenizer(), stop=["你好吗", "end"])
    assert [stream.push(token) for token in _ids_by_byte("a e")] == ["a", "", " "]
    assert not stream.stopped
    assert [stream.push(token) for token in _ids_by_byte("nx你好")] == ["", "enx", *[""] * 6]
    assert [stream.push(token) for token in _ids_by_byte("吗 more 你好吗")] == [""] * 18
    assert stream.stopped
    assert stream.finish() == ""
    assert stream.text == "a enx"


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("xabcd", ("abcd", "bc"), "xa"),
        ("xabc", ("ab", "abc"), "x"),
        ("aab", ("ab",), "a"),
        ("abab", ("abc",), "abab"),
        ("x . y", (".",), "x"),
        ("x<n>y", ("\n",), "x"),
    ],
)
def test_overlapping_and_replaced_stop_strings(text: str, stop: tuple[str, ...], expected: str) -> None:
    assert "".join(_stream(_ids_by_byte(text), stop=stop)) == expected


def test_a_stop_string_may_appear_only_at_the_end() -> None:
    stream = TextStream(tiny_tokenizer(), stop=[" "])
    assert stream.push(_byte(ord(" "))) == ""
    assert stream.finish() == ""
    assert stream.stopped


def test_an_empty_stop_string_or_an_unknown_post_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="none of them empty"):
        TextStream(tiny_tokenizer(), stop=["a", ""])
    with pytest.raises(UsageError, match="list of strings"):
        TextStream(tiny_tokenizer(), stop="end")
    with pytest.raises(UsageError, match="identity or process_response"):
        TextStream(tiny_tokenizer(), str.upper)


def test_2048_ids_of_any_kind_take_far_less_than_a_second() -> None:
    blank_80 = _ids("x" + " " * 80)[-1]
    for ids in ([blank_80] * 2048, [_byte(0xF0)] * 2048, [5] * 2048, list(range(tiny_tokenizer().size)) * 4):
        start = time.perf_counter()
        _stream(ids[:2048], process_response, ("###", "\n\nUser:"))
        assert time.perf_counter() - start < 1
