"""The conversation on a terminal: the official demo's words, and what it left out.

    用户：question         is answered; "clear" and "stop" are the official commands, /help lists the others
    用户：\"\"\"three lines   begins a question of several lines, which ends with \"\"\"
    Ctrl-C                stops an answer and keeps the session; at the prompt it reminds of Ctrl-D, which leaves

An error ends the question, not the session.
"""

import dataclasses
import difflib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from glmcpu import files
from glmcpu.chat import ChatSession, check_count
from glmcpu.cli import terminal
from glmcpu.cli.answer import Ask, explain_end, show_answer, stats_line
from glmcpu.cli.editing import line_editing
from glmcpu.errors import DataError, GlmcpuError, UsageError, printable, shown
from glmcpu.rounds import read_conversation

WELCOME = "欢迎使用 ChatGLM-6B 模型，输入内容即可进行对话，clear 清空对话历史，stop 终止程序"
HINT = "Type a question. /help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves."
QUESTION, ANSWER, MORE = "用户：", "ChatGLM-6B：", "... "
QUOTES = '"""'

HELP = {
    "clear": "forget the conversation and clear the screen (also /clear)",
    "stop": "leave (also /exit)",
    "/undo": "take the newest round back",
    "/retry": "ask the newest question again",
    "/save FILE": "write the conversation to FILE",
    "/load FILE": "go on with the conversation of FILE",
    "/set NAME VALUE": "change a setting; without NAME and VALUE show them all",
    "/stats": "show the speeds of the newest answer",
    "/help": "show this list",
    QUOTES: "begin and end a question of several lines",
}
SETTINGS: dict[str, Callable[[str], float]] = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "repetition_penalty": float,
    "seed": int,
    "max_new_tokens": int,
}
_MAY_BE_NONE = ("seed", "max_new_tokens")


def run(session: ChatSession, history: Path, *, stats: bool = False) -> None:
    """Talks with the person at the terminal until they leave; `stats` shows the speeds after each answer."""
    terminal.write_line(f"{WELCOME}\n{HINT}")
    with line_editing(history):
        while True:
            try:
                text, literal = read_question()
            except EOFError:
                terminal.write("\n")
                return
            except KeyboardInterrupt:
                terminal.write("\n")
                terminal.note("Ctrl-D or stop leaves")
                continue
            try:
                if not handle(session, text, literal, stats):
                    return
            except KeyboardInterrupt:
                terminal.note(_stopped(session))
            except GlmcpuError as error:
                terminal.note(f"error: {printable(error, 1000)}")
            except MemoryError:
                terminal.note("error: not enough memory; close other programs, or ask something shorter")


def read_question() -> tuple[str, bool]:
    """(text, whether it stood between quotes and is never a command). Raises EOFError and KeyboardInterrupt."""
    terminal.write("\n")
    line = input(QUESTION)
    if not line.lstrip().startswith(QUOTES):
        return line.strip(), False
    text = line.lstrip().removeprefix(QUOTES)
    while not text.rstrip().endswith(QUOTES):
        text += "\n" + input(MORE)
    return text.rstrip().removesuffix(QUOTES).strip("\n"), True


def handle(session: ChatSession, text: str, literal: bool, stats: bool) -> bool:
    """Answers a question or carries out a command; False when the user wants to leave."""
    if literal or not (text.startswith("/") or text in ("clear", "stop")):
        if text.strip():
            _answer(session, functools.partial(session.say, text), stats)
        return True
    name, _, argument = text.removeprefix("/").partition(" ")
    if name in ("stop", "exit"):
        return False
    if name == "retry":
        _answer(session, session.retry, stats)
    elif name in _ACTIONS:
        _ACTIONS[name](session, argument.strip())
    else:
        near = difflib.get_close_matches(name, [*_ACTIONS, "retry", "exit"], 1)
        hint = f"did you mean /{near[0]}?" if near else f"/help lists the commands, {QUOTES} before a text sends it"
        raise UsageError(f"unknown command {printable('/' + name)}; {hint}")
    return True


def _answer(session: ChatSession, ask: Ask, stats: bool) -> None:
    show_answer(ask, ANSWER)
    if session.last is not None:
        explain_end(session.last)
        if stats:
            terminal.note(stats_line(session.last))


def _stopped(session: ChatSession) -> str:
    if session.last is None or not session.last.answer_tokens:
        return "stopped before the first word"
    return "stopped; what was said so far stays in the conversation (/undo takes it back)"


def _clear(session: ChatSession, _: str) -> None:
    session.clear()
    click.clear()
    terminal.write_line(WELCOME)


def _help(_: ChatSession, __: str) -> None:
    width = max(map(len, HELP))
    terminal.write_line("\n".join(f"  {name:{width}}  {meaning}" for name, meaning in HELP.items()))


def _undo(session: ChatSession, _: str) -> None:
    question, _answer_text = session.undo()
    terminal.write_line(f"took back: {printable(question)}")


def _save(session: ChatSession, argument: str) -> None:
    path = _path(argument, "/save")
    if files.exists(path):
        _require_conversation(path)
    session.save(path)
    terminal.write_line(f"saved {len(session.history)} rounds to {shown(path)}")


def _require_conversation(path: Path) -> None:
    # A slip of the tab key must not cost a model of four gigabytes.
    try:
        read_conversation(path)
    except DataError as error:
        raise UsageError(
            f"{shown(path)}: exists and is no saved conversation, so it is not replaced; choose another name"
        ) from error


def _load(session: ChatSession, argument: str) -> None:
    path = _path(argument, "/load")
    session.load(path)
    terminal.write_line(f"loaded {len(session.history)} rounds from {shown(path)}")


def _path(argument: str, command: str) -> Path:
    if not argument:
        raise UsageError(f"{command} needs a file name: {command} FILE")
    return files.expanded(argument)


def _set(session: ChatSession, argument: str) -> None:
    if not argument:
        for name in SETTINGS:
            terminal.write_line(f"  {name:18}  {_setting(session, name)}")
        return
    name, _, text = argument.replace("=", " ").partition(" ")
    name = name.replace("-", "_")
    if name not in SETTINGS:
        near = difflib.get_close_matches(name, SETTINGS, 1)
        hint = f"did you mean {near[0]}?" if near else f"settings: {', '.join(SETTINGS)}"
        raise UsageError(f"no setting {printable(name)}; {hint}")
    value = _value(name, text.strip())
    if name == "max_new_tokens":
        session.max_new_tokens = None if value is None else check_count(value, name)
    else:
        change: dict[str, Any] = {name: value}
        session.sampler = dataclasses.replace(session.sampler, **change)
    terminal.write_line(f"{name} is now {_setting(session, name)}")


def _setting(session: ChatSession, name: str) -> object:
    return getattr(session if name == "max_new_tokens" else session.sampler, name)


def _value(name: str, text: str) -> float | None:
    if name in _MAY_BE_NONE and text.lower() in ("none", "off"):
        return None
    try:
        return SETTINGS[name](text)
    except ValueError as error:
        kind = "whole number" if SETTINGS[name] is int else "number"
        raise UsageError(f"{name} cannot be {printable(text)!r}; give a {kind}: /set {name} VALUE") from error


def _stats(session: ChatSession, _: str) -> None:
    if session.last is None:
        raise UsageError("no answer has been given yet; ask something first")
    terminal.write_line(stats_line(session.last))
    terminal.write_line(f"context {session.model.context:,} tokens, {session.last.dropped_rounds} rounds left out")


_ACTIONS: dict[str, Callable[[ChatSession, str], None]] = {
    "clear": _clear,
    "help": _help,
    "undo": _undo,
    "save": _save,
    "load": _load,
    "set": _set,
    "stats": _stats,
}
