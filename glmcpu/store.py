"""Where packed models live, and how a name on the command line becomes a file.

    $GLMCPU_HOME, or else  Linux    $XDG_DATA_HOME/glmcpu, ~/.local/share/glmcpu
                           macOS    ~/Library/Application Support/glmcpu
                           Windows  %LOCALAPPDATA%\\glmcpu

Every *.safetensors file in that folder is a model, and its name without the suffix is the name the user types. A plain
name means the models folder first, so a file that happens to lie in the working folder never takes a model's place.

One model comes with the package, a few megabytes trained by demo/: the name `demo`, and what answers where none is.
"""

import difflib
import os
import sys
from pathlib import Path

from glmcpu.errors import DataError, UsageError, printable, shown
from glmcpu.files import exists

SUFFIX = ".safetensors"
EMBEDDED_NAME = "demo"


def home() -> Path:
    """The models folder; it need not exist yet. Raises UsageError where the system knows no home of the user."""
    try:
        return _home()
    except RuntimeError as error:
        raise UsageError("the user has no home folder to keep models in; set GLMCPU_HOME to a folder") from error


def _home() -> Path:
    if own := os.environ.get("GLMCPU_HOME"):
        return Path(own).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "glmcpu"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "glmcpu"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "glmcpu"


def embedded() -> Path:
    """The small model that comes with the package."""
    return Path(__file__).with_name(f"{EMBEDDED_NAME}{SUFFIX}")


def models() -> list[Path]:
    """The packed models of the models folder, by name; hidden and unfinished files are not models."""
    folder = home()
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.glob(f"*{SUFFIX}") if p.is_file() and not p.name.startswith("."))


def named(name: str) -> Path | None:
    """The model of that name in the models folder, or the embedded one; None when there is none."""
    inside = home() / f"{name}{SUFFIX}"
    if not _looks_like_path(name) and exists(inside) and inside.is_file():
        return inside
    return embedded() if name == EMBEDDED_NAME else None


def find(path_or_name: str | os.PathLike[str]) -> Path:
    """The file of a model given by path or by its name in the models folder.

    What has a separator or the suffix .safetensors is a path, and a plain name that is no model may be a file's. Raises
    DataError, with the nearest name, when there is no such file, MachineError when we may not look.
    """
    text = os.fspath(path_or_name)
    path = Path(text)
    if not _looks_like_path(text):
        if model := named(text):
            return model
        if exists(path) and path.is_file():
            return path
        raise DataError(f"no model {printable(text)!r} in {shown(home())}; {_advice(text)}")
    if exists(path):
        if path.is_dir():
            raise DataError(
                f"{shown(path)}: is a folder, and a packed model is one file; of a checkpoint's folder one is made "
                "with: glmcpu convert FOLDER"
            )
        return path
    if path.name == text and (home() / text).is_file():
        return home() / text
    raise DataError(f"{shown(text)}: no such file; {_advice(path.name.removesuffix(SUFFIX))}")


def only() -> Path:
    """The one model of the models folder, the embedded one when there is none; raises DataError for several."""
    found = models()
    if len(found) == 1:
        return found[0]
    if not found:
        return embedded()
    raise DataError(f"{len(found)} models in {shown(home())}; name one of: {_listed(found)}")


def _listed(paths: list[Path]) -> str:
    return printable(", ".join(path.name.removesuffix(SUFFIX) for path in paths))


def _looks_like_path(text: str) -> bool:
    return text.endswith(SUFFIX) or any(s in text for s in (os.sep, os.altsep) if s)


def _advice(name: str) -> str:
    """What to do when `name` is not there: the near miss, or the list, or how to make a first model."""
    there = models()
    if near := difflib.get_close_matches(name, [p.name.removesuffix(SUFFIX) for p in there], 1):
        return f"did you mean {printable(near[0])!r}?"
    if there:
        return f"the models there are: {_listed(there)}"
    return "make one with: glmcpu convert THUDM/chatglm-6b, or give the path of a packed file"
