"""The conversation on a terminal: typed at a real pseudo-terminal, and command by command."""

import signal
import stat
import sys
import time

import pytest
from fake_model import FakeModel
from pseudo_terminal import ANSWER, QUESTION, Terminal

from glmcpu.chat import ChatSession
from glmcpu.cli import repl
from glmcpu.errors import DataError, GlmcpuError, UsageError
from glmcpu.rounds import write_conversation
from glmcpu.sampling import Sampler

on_terminal = pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are POSIX")


@on_terminal
def test_a_conversation_shows_the_official_words_and_ctrl_d_leaves(tmp_path):
    terminal = Terminal(tmp_path)
    terminal.expect("欢迎使用 ChatGLM-6B 模型，输入内容即可进行对话，clear 清空对话历史，stop 终止程序")
    terminal.type("你好\n")
    terminal.expect(f"{ANSWER}好的， 再见\n")
    terminal.type("\x04")
    assert terminal.end() == 0


@on_terminal
@pytest.mark.parametrize("word", ["stop", "/exit", " stop "])
def test_stop_and_exit_leave(word, tmp_path):
    terminal = Terminal(tmp_path)
    terminal.type(f"{word}\n")
    assert terminal.end() == 0


@on_terminal
def test_ctrl_c_stops_the_answer_and_keeps_the_session(tmp_path):
    terminal = Terminal(tmp_path, FAKE_ANSWER="x" * 2000, FAKE_DELAY_S="0.01")
    terminal.type("q\n")
    terminal.expect("xxx")
    terminal.signal(signal.SIGINT)
    terminal.expect("stopped; what was said so far stays")
    terminal.type("/undo\n")
    terminal.expect("took back: q")
    terminal.type("stop\n")
    assert terminal.end() == 0


@on_terminal
def test_ctrl_c_at_the_prompt_is_a_hint(tmp_path):
    terminal = Terminal(tmp_path)
    terminal.type("half a li")
    terminal.expect("half a li")
    time.sleep(0.3)
    terminal.type("\x03", after="")
    terminal.expect("Ctrl-D or stop leaves")
    terminal.type("stop\n")
    assert terminal.end() == 0


@on_terminal
def test_sigterm_at_the_prompt_ends_with_143(tmp_path):
    terminal = Terminal(tmp_path)
    terminal.expect(QUESTION)
    terminal.signal(signal.SIGTERM)
    assert terminal.end() == 143


@on_terminal
@pytest.mark.parametrize("locale", [{}, {"LC_ALL": "C"}, {"TERM": "dumb"}])
def test_several_lines_between_quotes_are_one_question(locale, tmp_path):
    terminal = Terminal(tmp_path, FAKE_ANSWER="ECHO", **locale)
    terminal.type('"""/eins\n')
    terminal.type("zwei\n", after="... ")
    terminal.type('三"""\n', after="... ")
    terminal.expect(f"{ANSWER}/eins\nzwei\n三\n")
    terminal.type("\x04")
    assert terminal.end() == 0


@on_terminal
@pytest.mark.parametrize("locale", [{"LC_ALL": "C.UTF-8"}, {"LC_ALL": "C"}])
def test_typed_lines_are_remembered_for_their_owner_only(locale, tmp_path):
    pytest.importorskip("readline")
    terminal = Terminal(tmp_path, **locale)
    terminal.type("什么\n")
    terminal.type("stop\n")
    assert terminal.end() == 0
    history = tmp_path / "chat_history"
    assert history.read_text(encoding="utf-8") == "什么\nstop\n"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    terminal = Terminal(tmp_path, FAKE_ANSWER="ECHO", **locale)
    terminal.type("\x1b[A\x1b[A\n")
    terminal.expect(f"{ANSWER}什么\n")
    terminal.type("\x04")
    assert terminal.end() == 0


@on_terminal
def test_a_folder_that_cannot_hold_the_history_is_no_trouble(tmp_path):
    (tmp_path / "home").write_text("a file")
    terminal = Terminal(tmp_path / "home")
    terminal.type("stop\n")
    assert terminal.end() == 0


@on_terminal
def test_a_long_prompt_shows_its_progress_and_takes_it_away(tmp_path):
    terminal = Terminal(tmp_path, FAKE_DELAY_S="0.06")
    terminal.type("q\n")
    terminal.expect("reading the prompt: layer ")
    terminal.expect(f"\r{ANSWER}好")
    terminal.signal(signal.SIGTERM)
    assert terminal.end() == 143
    assert "\n" not in terminal.shown.partition("reading")[2].partition(ANSWER)[0]


@on_terminal
def test_a_question_too_long_is_an_error_line_and_not_the_end(tmp_path):
    terminal = Terminal(tmp_path, "--context", "64")
    terminal.type("x" * 200 + "\n")
    terminal.expect("glmcpu: error: the question alone is 202 tokens")
    terminal.type("\x04")
    assert terminal.end() == 0


@on_terminal
def test_dropped_rounds_are_announced_in_one_line(tmp_path):
    terminal = Terminal(tmp_path, "--context", "160")
    terminal.type("x" * 60 + "\n")
    terminal.type("y" * 60 + "\n")
    terminal.expect("glmcpu: note: the conversation is longer than 160 tokens: the oldest 1 of its 1 rounds")
    terminal.expect(f"{ANSWER}好的")
    terminal.type("stop\n")
    assert terminal.end() == 0


@pytest.fixture
def session():
    fresh = ChatSession(FakeModel("answer"))
    list(fresh.say("question"))
    return fresh


def test_questions_are_answered_and_quoted_commands_are_questions(session, capsys):
    assert repl.handle(session, "stop", literal=True, stats=False)
    assert capsys.readouterr().out == f"{ANSWER}answer\n"
    assert session.history[-1] == ("stop", "answer")


def test_clear_forgets_and_greets_again(session, capsys):
    assert repl.handle(session, "clear", literal=False, stats=False)
    assert session.history == []
    assert repl.WELCOME in capsys.readouterr().out


def test_retry_asks_again_and_stats_are_shown_when_asked_for(session, capsys):
    repl.handle(session, "/retry", literal=False, stats=True)
    out, err = capsys.readouterr()
    assert out == f"{ANSWER}answer\n"
    assert "tokens/s" in err
    assert session.history == [("question", "answer")]


def test_help_lists_every_command(session, capsys):
    repl.handle(session, "/help", literal=False, stats=False)
    out = capsys.readouterr().out
    for name in ("clear", "stop", "/clear", "/exit", "/undo", "/retry", "/save", "/load", "/set", "/stats", '"""'):
        assert name in out


def test_a_conversation_goes_to_a_file_and_back(session, tmp_path, capsys):
    path = tmp_path / "谈话 1.json"
    repl.handle(session, f"/save {path}", literal=False, stats=False)
    session.clear()
    repl.handle(session, f"/load {path}", literal=False, stats=False)
    assert session.history == [("question", "answer")]
    assert "loaded 1 rounds" in capsys.readouterr().out


def test_save_replaces_a_conversation_and_nothing_else(session, tmp_path):
    path = tmp_path / "talk.json"
    write_conversation(path, None, [])
    repl.handle(session, f"/save {path}", literal=False, stats=False)
    assert "question" in path.read_text()
    other = tmp_path / "model.safetensors"
    other.write_bytes(b"precious")
    with pytest.raises(UsageError, match="not replaced"):
        repl.handle(session, f"/save {other}", literal=False, stats=False)
    assert other.read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("line", "setting", "value"),
    [
        ("/set temperature 0", "temperature", 0.0),
        ("/set top-p 0.5", "top_p", 0.5),
        ("/set top_k=7", "top_k", 7),
        ("/set repetition_penalty 1.2", "repetition_penalty", 1.2),
        ("/set seed 5", "seed", 5),
        ("/set seed none", "seed", None),
    ],
)
def test_settings_change_the_sampler(session, line, setting, value):
    session.sampler = Sampler(seed=1)
    repl.handle(session, line, literal=False, stats=False)
    assert getattr(session.sampler, setting) == value


def test_settings_are_listed_and_max_new_tokens_is_one(session, capsys):
    repl.handle(session, "/set max_new_tokens 9", literal=False, stats=False)
    repl.handle(session, "/set", literal=False, stats=False)
    assert session.max_new_tokens == 9
    assert "temperature         0.95" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "kind", "words"),
    [
        ("/hlep", UsageError, "did you mean /help"),
        ("/usr/bin/env", UsageError, "/help lists"),
        ("/save", UsageError, "/save FILE"),
        ("/load", UsageError, "/load FILE"),
        ("/load nothing-there.json", DataError, "nothing-there.json"),
        ("/set", None, ""),
        ("/set temprature 1", UsageError, "did you mean temperature"),
        ("/set colour 1", UsageError, "settings: temperature"),
        ("/set temperature", UsageError, "give a number"),
        ("/set temperature -1", UsageError, "temperature"),
        ("/set temperature none", UsageError, "give a number"),
        ("/set top_k 1.5", UsageError, "whole number"),
        ("/set max_new_tokens 0", UsageError, "max_new_tokens"),
    ],
)
def test_a_wrong_command_changes_nothing_and_says_what_is_right(session, line, kind, words):
    before = session.sampler
    if kind is None:
        repl.handle(session, line, literal=False, stats=False)
    else:
        with pytest.raises(GlmcpuError, match=words) as caught:
            repl.handle(session, line, literal=False, stats=False)
        assert isinstance(caught.value, kind)
    assert session.sampler == before
    assert session.max_new_tokens is None


def test_stats_before_the_first_answer_is_an_error():
    with pytest.raises(UsageError, match="no answer"):
        repl.handle(ChatSession(FakeModel()), "/stats", literal=False, stats=False)


def test_what_was_taken_back_cannot_command_the_terminal(capsys):
    session = ChatSession(FakeModel())
    session.history = [("\x1b[2J", "a")]
    repl.handle(session, "/undo", literal=False, stats=False)
    assert "\x1b" not in capsys.readouterr().out
