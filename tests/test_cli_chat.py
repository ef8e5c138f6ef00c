"""`glmcpu chat` without a terminal: one question, the bare answer."""

import pytest
from test_cli_main import run


def test_the_answer_alone_is_on_stdout(tmp_path):
    code, out, err = run("chat", "--prompt", "你好", home=tmp_path)
    assert (code, out.decode(), err) == (0, "好的， 再见\n", "")


def test_the_prompt_comes_from_stdin_whole_with_its_lines(tmp_path):
    question = b"eins\r\nzwei" + b"\xff\n"
    code, out, _ = run("chat", "-s", "SYS", stdin=question, home=tmp_path, env={"FAKE_ANSWER": "ECHO"})
    assert code == 0
    assert out.decode() == "[Round 0]\n问：SYS\n答：好的。\n[Round 1]\n问：eins\nzwei\ufffd\n答：\n"


@pytest.mark.parametrize("locale", [{"LC_ALL": "C", "PYTHONUTF8": "0"}, {"PYTHONIOENCODING": "ascii"}, {"LANG": "C"}])
def test_chinese_survives_every_locale(locale, tmp_path):
    code, out, err = run("chat", stdin="你好".encode(), home=tmp_path, env={**locale, "FAKE_ANSWER": "ECHO"})
    assert (code, out.decode(), err) == (0, "你好\n", "")


def test_control_characters_of_an_answer_never_reach_the_console(tmp_path):
    answer = "a\x1b]52;c;aGk=\x07b\u202ec\x9bd\te\nf\r"
    code, out, _ = run("chat", "-p", "q", home=tmp_path, env={"FAKE_ANSWER": answer})
    assert (code, out.decode()) == (0, "a␛]52;c;aGk=␇bc\ufffdd\te\nf\n")


def test_every_byte_is_a_prompt(tmp_path):
    code, out, _ = run("chat", stdin=bytes(range(256)), home=tmp_path)
    assert (code, out.decode()) == (0, "好的， 再见\n")


def test_a_prompt_of_more_than_a_megabyte_is_refused(tmp_path):
    code, out, err = run("chat", stdin=b"x" * (2 << 20), home=tmp_path)
    assert (code, out) == (2, b"")
    assert "more than 1,048,576 bytes" in err


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(tmp_path):
    code, out, err = run("chat", "-c", "64", "-p", "x" * 100, home=tmp_path)
    assert (code, out) == (2, b"")
    assert "102 tokens" in err
    assert "64" in err


def test_stats_and_a_cut_answer_are_told_on_stderr(tmp_path):
    code, out, err = run("chat", "-p", "q", "-n", "3", "--stats", home=tmp_path)
    assert (code, out.decode()) == (0, "好\n")
    assert "cut after 3 tokens" in err
    assert "tokens/s" in err
    assert err.count("\n") == 2


@pytest.mark.parametrize(("options", "shown"), [([], True), (["--lookup"], True), (["--no-lookup"], False)])
def test_stats_say_how_many_drafts_held_where_there_are_drafts(options, shown, tmp_path):
    code, out, err = run("chat", "-p", "q", "--stats", *options, home=tmp_path, env={"FAKE_ANSWER": "abcd"})
    assert (code, out) == (0, b"abcd\n")
    assert ("lookup: 3 of 5 drafts" in err) == shown == ("lookup" in err)


def test_an_empty_answer_is_an_empty_line(tmp_path):
    assert run("chat", "-p", "q", home=tmp_path, env={"FAKE_ANSWER": ""})[:2] == (0, b"\n")


def test_a_failure_in_the_model_leaves_stdout_empty(tmp_path):
    code, out, err = run("chat", "-p", "q", home=tmp_path, env={"FAKE_ANSWER": "OUT OF MEMORY"})
    assert (code, out) == (4, b"")
    assert err.startswith("glmcpu: error: no memory")
