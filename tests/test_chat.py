"""ChatSession, chat() and stream_chat() over a model that answers by rule."""

import itertools
import re

import pytest
from fake_model import FakeModel

from glmcpu.chat import SYSTEM_ANSWER, ChatSession, chat, stream_chat
from glmcpu.errors import ContextWarning, DataError, UsageError
from glmcpu.sampling import Sampler


def test_a_round_is_streamed_in_whole_characters_and_remembered():
    session = ChatSession(FakeModel("好的,再见🫠"))
    pieces = list(session.say("你好"))
    assert "".join(pieces) == "好的，再见🫠"
    assert "\ufffd" not in "".join(pieces)
    assert session.history == [("你好", "好的，再见🫠")]


def test_the_second_prompt_holds_the_first_round_in_the_official_frame():
    model = FakeModel("a1")
    session = ChatSession(model)
    list(session.say("q0"))
    list(session.say("q1"))
    assert model.prompts == ["q0", "[Round 0]\n问：q0\n答：a1\n[Round 1]\n问：q1\n答："]


def test_stats_count_tokens_and_give_the_finish_reason():
    session = ChatSession(FakeModel("abc"))
    list(session.say("hello"))
    last = session.last
    assert (last.prompt_tokens, last.answer_tokens, last.finish_reason, last.partial) == (7, 4, "stop", False)
    assert last.prompt_s >= 0
    assert last.answer_tokens_per_s > 0


def test_stats_count_the_drafts_and_those_that_became_tokens():
    """The fake model drafts every token, and every other one rightly."""
    session = ChatSession(FakeModel("abcd"))
    list(session.say("hello"))
    assert (session.last.lookup, session.last.accepted, session.last.drafts) == (True, 3, 5)
    session.lookup = False
    list(session.say("hello"))
    assert (session.last.lookup, session.last.accepted, session.last.drafts) == (False, 0, 0)


def test_max_new_tokens_cuts_the_answer_and_says_length():
    session = ChatSession(FakeModel("abcdef"), max_new_tokens=3)
    assert "".join(session.say("q")) == "abc"
    assert session.last.finish_reason == "length"


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3", 10**9])
def test_max_new_tokens_out_of_range_is_refused_with_the_value(value):
    with pytest.raises(UsageError, match=re.escape(repr(value))):
        ChatSession(FakeModel(), max_new_tokens=value)


def test_a_closed_answer_keeps_what_was_shown_and_is_marked_partial():
    model = FakeModel("abcdef")
    session = ChatSession(model)
    pieces = session.say("q")
    shown = next(pieces) + next(pieces)
    pieces.close()
    assert session.history == [("q", shown)]
    assert session.last.partial
    assert model.closed == 1


def test_an_interrupt_inside_the_model_keeps_the_answer_so_far():
    def interrupted(*_, **__):
        yield from FakeModel("ab").generate([1], max_new_tokens=2)
        raise KeyboardInterrupt

    model = FakeModel()
    model.generate = interrupted
    session = ChatSession(model)
    with pytest.raises(KeyboardInterrupt):
        list(session.say("q"))
    assert session.history == [("q", "ab")]
    assert session.last.partial


def test_an_interrupt_before_the_first_word_leaves_the_history_alone():
    model = FakeModel()
    session = ChatSession(model)
    list(session.say("q"))
    before = list(session.history)

    def interrupted(*_, **__):
        raise KeyboardInterrupt
        yield

    model.generate = interrupted
    for ask in (lambda: session.say("q2"), session.retry):
        with pytest.raises(KeyboardInterrupt):
            list(ask())
        assert session.history == before


def test_undo_takes_the_newest_round_and_refuses_an_empty_conversation():
    session = ChatSession(FakeModel("a"))
    list(session.say("q"))
    assert session.undo() == ("q", "a")
    with pytest.raises(UsageError, match="empty"):
        session.undo()


def test_retry_replaces_the_newest_answer():
    answers = iter(["first", "second"])
    session = ChatSession(FakeModel(lambda _: next(answers)))
    list(session.say("q"))
    assert "".join(session.retry()) == "second"
    assert session.history == [("q", "second")]


def test_retry_without_a_question_is_refused():
    with pytest.raises(UsageError, match="ask one first"):
        ChatSession(FakeModel()).retry()


def test_a_seed_gives_each_answer_its_own_draw_and_clear_starts_anew():
    model = FakeModel("a")
    session = ChatSession(model, sampler=Sampler(seed=7))
    list(session.say("q"))
    list(session.retry())
    session.clear()
    list(session.say("q"))
    assert [s.seed for s in model.samplers] == [7, 8, 7]
    assert session.history == [("q", "a")]


def test_system_text_is_a_first_round_that_is_not_in_the_history():
    model = FakeModel("a")
    session = ChatSession(model, system="be brief")
    list(session.say("q"))
    assert model.prompts == [f"[Round 0]\n问：be brief\n答：{SYSTEM_ANSWER}\n[Round 1]\n问：q\n答："]
    assert session.history == [("q", "a")]


def test_old_whole_rounds_are_dropped_with_a_warning_and_never_the_system_text():
    model = FakeModel("a" * 20, context=256)
    session = ChatSession(model, system="SYS")
    session.history = [(f"question {n}", "answer") for n in range(20)]
    with pytest.warns(ContextWarning, match=r"oldest 1\d of its 20 rounds"):
        list(session.say("now"))
    prompt = model.prompts[0]
    assert prompt.startswith("[Round 0]\n问：SYS\n")
    assert "question 19" in prompt
    assert "question 0\n" not in prompt
    assert prompt.count("问：") == prompt.count("答：") == 22 - session.last.dropped_rounds
    assert len(session.history) == 21


def test_the_same_loss_is_not_announced_twice():
    model = FakeModel("a", context=256)
    session = ChatSession(model)
    session.history = [("x" * 150, "y")]
    with pytest.warns(ContextWarning):
        list(session.say("q"))
    list(session.say("q"))


def test_a_question_too_long_alone_is_refused_with_both_numbers():
    session = ChatSession(FakeModel(context=256))
    with pytest.raises(UsageError, match=r"302 tokens .* 192 .*256"):
        session.say("x" * 300)
    assert session.history == []


def test_half_a_surrogate_pair_is_read_as_a_replacement_character():
    model = FakeModel("a")
    list(ChatSession(model).say("a\ud800b"))
    assert model.prompts == ["a\ufffdb"]


def test_a_question_that_is_no_text_or_a_megabyte_is_refused():
    session = ChatSession(FakeModel())
    with pytest.raises(UsageError, match="bytes"):
        session.say(b"q")
    with pytest.raises(UsageError, match="1,048,577 bytes"):
        session.say("x" * ((1 << 20) + 1))


def test_a_model_without_tokenizer_says_how_to_get_one():
    model = FakeModel()
    model.tokenizer = None
    for use in (lambda: ChatSession(model), lambda: chat(model, "q")):
        with pytest.raises(DataError, match="--tokenizer"):
            use()


def test_a_saved_conversation_is_read_back_equal(tmp_path):
    session = ChatSession(FakeModel("好的\u2028\x1b"), system="系统")
    list(session.say('"你好"\n\\'))
    session.save(tmp_path / "talk.json")
    other = ChatSession(FakeModel())
    other.load(tmp_path / "talk.json")
    assert (other.system, other.history) == (session.system, session.history)
    assert "你好" in (tmp_path / "talk.json").read_text(encoding="utf-8")


def test_a_file_that_is_no_conversation_changes_nothing(tmp_path):
    path = tmp_path / "talk.json"
    path.write_text("[]")
    session = ChatSession(FakeModel())
    session.history = [("q", "a")]
    with pytest.raises(DataError):
        session.load(path)
    assert session.history == [("q", "a")]


def test_chat_returns_the_response_and_a_new_history():
    history = [("q0", "a0")]
    response, new = chat(FakeModel("好!"), "q1", history)
    assert (response, new) == ("好！", [("q0", "a0"), ("q1", "好！")])
    assert history == [("q0", "a0")]


def test_stream_chat_ends_with_the_response_of_chat_and_only_grows():
    model = FakeModel("好,的🫠 [[训练时间]]!  ")
    responses = [response for response, _ in stream_chat(model, "q")]
    assert responses[-1] == chat(model, "q")[0] == "好，的🫠 2023年！"
    assert all(late.startswith(early) for early, late in itertools.pairwise(responses))


def test_an_empty_answer_is_still_one_response():
    assert list(stream_chat(FakeModel(""), "q")) == [("", [("q", "")])]


def test_an_answer_that_ends_at_max_length_keeps_its_last_token():
    responses = [r for r, _ in stream_chat(FakeModel("abcdef"), "q", max_length=6)]
    assert responses[-1] == "abc"


def test_official_options_reach_the_sampler():
    model = FakeModel("a")
    chat(model, "q")
    chat(model, "q", do_sample=False, top_k=3, seed=5, repetition_penalty=1.5)
    assert model.samplers == [Sampler(), Sampler(temperature=0, top_k=3, seed=5, repetition_penalty=1.5)]


@pytest.mark.parametrize("options", [{}, {"lookup": True}, {"lookup": False}])
def test_official_functions_look_up_unless_told_not_to(options):
    model = FakeModel("a")
    assert chat(model, "q", **options)[0] == "a"
    assert model.lookups == [options.get("lookup", True)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temprature": 1.0}, "temprature.*did you mean temperature"),
        ({"num_beams": 4}, "num_beams is 4"),
        ({"logits_processor": [print]}, "logits_processor"),
        ({"max_length": 0}, "max_length is 0"),
        ({"max_length": None}, "max_length is None"),
        ({"max_new_tokens": -3}, "max_new_tokens is -3"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 2.0}, "top_p"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_generated(options, words):
    model = FakeModel()
    with pytest.raises(UsageError, match=words):
        stream_chat(model, "q", **options)
    assert model.prompts == []


@pytest.mark.parametrize("history", ["q", [("q",)], [("q", "a", "b")], [("q", 1)], {"q": "a"}, [None]])
def test_a_history_that_is_no_list_of_pairs_is_refused(history):
    with pytest.raises(UsageError, match="history"):
        chat(FakeModel(), "q", history)


def test_max_length_drops_rounds_only_when_nothing_else_fits():
    model = FakeModel("abc")
    prompt_tokens = len(model.tokenizer.encode(model.tokenizer.chat_prompt("q", [("q0", "a0")])))
    assert chat(model, "q", [("q0", "a0")], max_length=prompt_tokens + 1)[0] == "a"
    with pytest.warns(ContextWarning, match="oldest 1 of its 1 rounds"):
        response, history = chat(model, "q", [("q0", "a0")], max_length=prompt_tokens)
    assert history == [("q0", "a0"), ("q", response)]
