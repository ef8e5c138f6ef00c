"""Writes the generated parts of README.md and README.zh.md: `python tests/update_readme.py`.

Between `<!-- begin: tree -->` and its end stands one line per file, from the first line of the file's docstring, and
between `<!-- begin: help -->` and its end the --help text of every command. test_project.py compares.
"""

import ast
import re
import subprocess
from pathlib import Path

import click

from glmcpu.cli import group

ROOT = Path(__file__).parents[1]
READMES = ("README.md", "README.zh.md")
FOLDERS = ("glmcpu", "convert", "tests", "benchmarks")
COLUMNS = 100


def project_files() -> list[Path]:
    """The project's files, relative to its root: what git has or would take; without git, all that are not hidden."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        paths = [Path(line) for line in listed]
    except (OSError, subprocess.CalledProcessError):
        paths = [p.relative_to(ROOT) for p in ROOT.rglob("*")]
        paths = [p for p in paths if not any(part.startswith(".") or part == "build" for part in p.parts)]
    return sorted(p for p in paths if (ROOT / p).is_file())


def tree() -> str:
    """The annotated tree; a folder's line is that of its __init__.py, unless that is empty."""
    lines = []
    shown: set[Path] = set()
    for path in sorted(p for p in project_files() if p.suffix == ".py" and p.parts[0] in FOLDERS):
        for folder in reversed(path.parents[:-1]):
            if folder not in shown:
                shown.add(folder)
                lines.append(_line(folder, f"{folder.name}/", _subject(ROOT / folder / "__init__.py")))
        if path.name != "__init__.py":
            lines.append(_line(path, path.name, _subject(ROOT / path)))
    return "```\n" + "\n".join(lines) + "\n```"


def help_texts() -> str:
    """The --help text of the program and of every command."""
    texts = []
    for words, command in [("glmcpu", group), *((f"glmcpu {n}", c) for n, c in sorted(group.commands.items()))]:
        context = click.Context(command, info_name=words, terminal_width=COLUMNS, max_content_width=COLUMNS)
        texts.append(f"$ {words} --help\n{command.get_help(context)}")
    return "```\n" + "\n\n".join(texts) + "\n```"


def generated() -> dict[str, str]:
    """What belongs between each pair of markers."""
    return {"tree": tree(), "help": help_texts()}


def part(readme: str, name: str) -> str:
    """The text between the markers `name`, without the blank lines around it."""
    return _marked(name).findall(readme)[0].strip()


def _marked(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<=<!-- begin: {name} -->\n)(.*?)(?=<!-- end: {name} -->)", re.DOTALL)


def _line(path: Path, name: str, subject: str) -> str:
    indent = "  " * (len(path.parts) - 1)
    return f"{indent + name:<30}{subject}".rstrip()


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
