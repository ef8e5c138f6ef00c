"""Writes the generated parts of README.md and README.zh.md: `python tests/update_readme.py`.

Between `<!-- begin: tree -->` and its end stands one line per file, from the first line of the file's docstring, and
between `<!-- begin: help -->` and its end the --help text of every command. test_project.py compares.
"""

import ast
import functools
import os
import re
import subprocess
import sys
from pathlib import Path

from glmcpu.cli import group

ROOT = Path(__file__).parents[1]
READMES = ("README.md", "README.zh.md")
FOLDERS = ("glmcpu", "convert", "demo", "tests", "benchmarks")


def git_files(*options: str) -> list[Path]:
    """The files git knows, relative to the root; none where there is no git, as in an unpacked sdist."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", *options]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return []
    return [Path(line) for line in listed if (ROOT / line).is_file()]


def tree(files: list[Path]) -> str:
    """The annotated tree of the Python files; a folder's line is that of its __init__.py, unless that is empty."""
    lines = []
    shown: set[Path] = set()
    sources = [p for p in files if p.suffix == ".py" and p.parts[0] in FOLDERS]
    for path in sorted(sources, key=lambda p: (FOLDERS.index(p.parts[0]), p)):
        for folder in reversed(path.parents[:-1]):
            if folder not in shown:
                shown.add(folder)
                lines.append(_line(folder, f"{folder.name}/", _subject(ROOT / folder / "__init__.py")))
        if path.name != "__init__.py":
            lines.append(_line(path, path.name, _subject(ROOT / path)))
    return "```\n" + "\n".join(lines) + "\n```"


@functools.cache
def help_texts() -> str:
    """What the program and every command print for --help, 100 columns wide."""
    texts = []
    for command in [[], *([name] for name in sorted(group.commands))]:
        # Not in this process: click remembers the help option of whoever asked first. Not in ROOT: it hides convert/.
        run = subprocess.run(
            [sys.executable, "-m", "glmcpu", *command, "--help"],
            cwd=ROOT / "tests",
            env={**os.environ, "COLUMNS": "100"},
            capture_output=True,
            encoding="utf-8",
            check=True,
        )
        texts.append(" ".join(["$ glmcpu", *command, "--help"]) + "\n" + run.stdout.strip())
    return "```\n" + "\n\n".join(texts) + "\n```"


def generated() -> dict[str, str]:
    """What belongs between each pair of markers."""
    return {"tree": tree(git_files("--others", "--exclude-standard")), "help": help_texts()}


def part(readme: str, name: str) -> str:
    """The text between the markers `name`, without the blank lines around it."""
    return _marked(name).findall(readme)[0].strip()


def _marked(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<=<!-- begin: {name} -->\n)(.*?)(?=<!-- end: {name} -->)", re.DOTALL)


def _line(path: Path, name: str, subject: str) -> str:
    indent = "  " * (len(path.parts) - 1)
    return f"{indent + name:<38}{subject}".rstrip()


def _subject(file: Path) -> str:
    """The first line of a file's docstring."""
    if not file.is_file():
        return ""
    doc = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    first = doc.partition("\n")[0].rstrip(".")
    return first.removeprefix(f"{file.stem}: ")


def main() -> None:
    for name in READMES:
        text = (ROOT / name).read_text(encoding="utf-8")
        for marker, content in generated().items():
            text = _marked(marker).sub(lambda _, content=content: f"{content}\n", text)
        (ROOT / name).write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
