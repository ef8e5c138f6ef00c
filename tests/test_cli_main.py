"""The command line as a whole: every failure is one line with a way forward and the right exit code."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from glmcpu import cli, errors

FAKE = str(Path(__file__).with_name("fake_model.py"))


def run(*arguments, stdin=b"", home, **settings):
    """(exit code, stdout, stderr) of the fake command line."""
    environment = {**os.environ, "GLMCPU_HOME": str(home), **settings.pop("env", {})}
    done = subprocess.run(
        [sys.executable, FAKE, *arguments], input=stdin, capture_output=True, env=environment, timeout=60, **settings
    )
    return done.returncode, done.stdout, done.stderr.decode()


CONTRACT = [
    # arguments, exit code, words that the line must hold
    (["cnvert", "x"], 2, ["cnvert", "did you mean 'convert'"]),
    (["talk"], 2, ["talk", "commands: batch, bench, chat"]),
    (["--nonsense"], 2, ["--nonsense", "--help"]),
    (["chat", "--tempature", "1"], 2, ["--tempature", "--temperature"]),
    (["chat", "--context", "0"], 2, ["--context", "'0'", "16 to"]),
    (["chat", "--context", "-1"], 2, ["--context", "'-1'", "16 to"]),
    (["chat", "--context", "1e9"], 2, ["--context", "'1e9'", "16 to"]),
    (["chat", "--threads", "0"], 2, ["--threads", "'0'", "1 to"]),
    (["chat", "--threads", "99999"], 2, ["--threads", "'99999'", "1 to"]),
    (["chat", "--threads", "abc"], 2, ["--threads", "'abc'", "1 to"]),
    (["chat", "--seed", "-1"], 2, ["--seed", "'-1'", "0 or more"]),
    (["chat", "--max-new-tokens", "0"], 2, ["--max-new-tokens", "'0'"]),
    (["chat", "--temperature", "nan", "-p", "x"], 2, ["temperature", "nan"]),
    (["chat", "--temperature", "-1", "-p", "x"], 2, ["temperature", "-1"]),
    (["chat", "--temperature", "inf", "-p", "x"], 2, ["temperature", "inf"]),
    (["chat", "--temperature", "hot"], 2, ["--temperature", "hot"]),
    (["chat", "--top-p", "0", "-p", "x"], 2, ["top_p", "0"]),
    (["chat", "--top-k", "-1", "-p", "x"], 2, ["top_k", "-1"]),
    (["chat", "--greedy", "--temperature", "1", "-p", "x"], 2, ["--greedy", "--temperature"]),
    (["chat", "--backend", "gpu"], 2, ["--backend", "gpu", "reference"]),
    (["chat", "-p", " "], 2, ["prompt is empty", "--prompt"]),
    (["chat"], 2, ["prompt is empty", "standard input"]),
    (["chat", "a", "b"], 2, ["chat --help"]),
    (["convert"], 2, ["SOURCE", "convert --help"]),
    (["convert", ""], 2, ["SOURCE is empty"]),
    (["convert", "x", "--weights", "int4g32"], 2, ["int4g32", "did you mean 'int4_g32'", "f16"]),
    (["rm", "nothing"], 3, ["nothing", "glmcpu ls"]),
    (["verify", "nothing"], 3, ["nothing", "glmcpu convert"]),
    (["info", "nothing.safetensors"], 3, ["nothing.safetensors"]),
    (["verify", "a\x1b]52;\u202e"], 3, [r"\x1b"]),
]


@pytest.mark.parametrize(("arguments", "code", "words"), CONTRACT, ids=[" ".join(row[0]) or "-" for row in CONTRACT])
def test_a_failure_is_one_line_with_the_value_and_the_right_exit_code(
    arguments, code, words, tmp_path, capfd, monkeypatch
):
    monkeypatch.setenv("GLMCPU_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "stdin", None)
    if arguments[0] == "chat":
        monkeypatch.setattr(cli.chat, "find_model", lambda _: tmp_path)
    assert cli.main(arguments) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert re.fullmatch(r"glmcpu: error: [^\n]{1,300}\n", err)
    assert all(word in err for word in words), err
    assert err.isprintable() or err[:-1].isprintable()


def test_without_a_command_the_help_is_shown(capfd):
    assert cli.main([]) == 0
    assert "convert" in capfd.readouterr().out


def test_help_and_version_go_to_stdout(capfd):
    assert cli.main(["--version"]) == 0
    assert cli.main(["chat", "-h"]) == 0
    out, err = capfd.readouterr()
    assert out.startswith("glmcpu ")
    assert "--repetition-penalty" in out
    assert err == ""


def test_help_says_the_same_on_every_machine():
    words = " ".join(command.get_help(click.Context(command)) for command in cli.group.commands.values())
    assert "<=" not in words


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (errors.UsageError("u"), 2, "error: u"),
        (errors.DataError("d"), 3, "error: d"),
        (errors.MachineError("m"), 4, "error: m"),
        (errors.NetworkError("n"), 5, "error: n"),
        (MemoryError(), 4, "memory"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 4, "/x: the system refuses: Permission denied"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (SystemExit(143), 143, "terminated"),
        (ZeroDivisionError("by zero"), 1, "bug in glmcpu, ZeroDivisionError: by zero; run again with --debug"),
    ],
)
def test_each_kind_of_failure_has_its_exit_code(error, code, words):
    assert cli.explain(error)[0] == code
    assert words in cli.explain(error)[1]


@pytest.mark.parametrize("arguments", [["--debug", "ls"], ["ls", "--debug"]])
def test_a_traceback_appears_with_debug_only(arguments, capfd, monkeypatch):
    def broken():
        raise ZeroDivisionError("x\ny")

    monkeypatch.setattr("glmcpu.store.models", broken)
    assert cli.main(arguments) == 1
    assert "Traceback" in capfd.readouterr().err
    assert cli.main(["ls"]) == 1
    err = capfd.readouterr().err
    assert "Traceback" not in err
    assert err.count("\n") == 1


def test_help_imports_no_kernels():
    code = "import sys; from glmcpu import cli; cli.main(['--help']); sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0


def test_python_m_glmcpu_is_the_same_program():
    done = subprocess.run([sys.executable, "-m", "glmcpu", "nope"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("glmcpu: error: no such command 'nope'")


@pytest.mark.skipif(sys.platform == "win32", reason="signals end a process without a word on Windows")
@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_ends_an_answer_with_its_exit_code(number, code, tmp_path):
    environment = {**os.environ, "GLMCPU_HOME": str(tmp_path), "FAKE_DELAY_S": "0.01", "FAKE_ANSWER": "x" * 2000}
    child = subprocess.Popen(
        [sys.executable, FAKE, "chat", "-p", "q"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    assert child.stdout.read(3) == b"xxx"
    began_s = time.monotonic()
    child.send_signal(getattr(signal, number))
    _, err = child.communicate(timeout=20)
    assert child.returncode == code
    assert time.monotonic() - began_s < 5
    assert err.count(b"\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="no /dev/full on Windows")
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("arguments", [["chat", "-p", "q"], ["--help"]])
def test_a_full_disk_behind_stdout_is_one_line(arguments, tmp_path):
    environment = {**os.environ, "GLMCPU_HOME": str(tmp_path)}
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, FAKE, *arguments], stdout=full, stderr=subprocess.PIPE, env=environment, timeout=60
        )
    assert done.returncode == 4
    assert done.stderr.startswith(b"glmcpu: error: ")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX pipes")
def test_a_reader_who_leaves_ends_the_answer_quietly(tmp_path):
    environment = {**os.environ, "GLMCPU_HOME": str(tmp_path), "FAKE_DELAY_S": "0.002", "FAKE_ANSWER": "x" * 1000}
    child = subprocess.Popen(
        [sys.executable, FAKE, "chat", "-p", "q"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    assert child.stdout.read(1) == b"x"
    child.stdout.close()
    err = child.stderr.read()
    child.stderr.close()
    assert child.wait(20) == cli.CLOSED_PIPE
    assert err == b""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
@pytest.mark.parametrize(
    ("redirection", "code"), [(">&-", 0), ("2>&-", 0), (">&- 2>&-", 0), ("<&-", 0)], ids=["out", "err", "both", "in"]
)
def test_closed_streams_are_no_trouble(redirection, code, tmp_path):
    environment = {**os.environ, "GLMCPU_HOME": str(tmp_path)}
    line = f'"{sys.executable}" "{FAKE}" chat -p q {redirection}'
    done = subprocess.run(["/bin/sh", "-c", line], capture_output=True, env=environment, timeout=60)
    assert done.returncode == code
    assert b"Traceback" not in done.stderr + done.stdout
