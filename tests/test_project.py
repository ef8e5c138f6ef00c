"""The rules of the tree: who imports whom, what no file may do, and papers that cannot go stale."""

import ast
import configparser
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from update_readme import READMES, ROOT, git_files, help_texts, part, tree

import glmcpu

# Imports point down or stay in their row, and never run in a circle.
ROWS = (
    {"simd", "errors", "files", "limits", "memory", "pages", "peak_memory", "strict_json", "safetensors_header"},
    {"formats", "kernels"},
    {"backends", "cache", "packed", "store"},
    {"models", "sampling", "tokenizers", "lookup"},
    {"chat", "rounds", "generate", "stream", "texts"},
    {"model", "engine", "adapters", "convert", "random_weights", "glmcpu"},  # the package itself offers Model
    {"batch", "batch_lines", "bench", "evaluate", "layer_errors", "predictions", "scoring", "summaries", "tuning"}
    | {"cli", "server", "web", "__main__"},
)
# Who may import what is neither ours nor the standard library; NumPy is everybody's.
OUTSIDE = {
    "llvmlite": {"simd"},
    "numba": {"simd", "kernels", "formats"},
    "sentencepiece": {"tokenizers"},
    "safetensors": {"packed", "convert"},
    "huggingface_hub": {"convert"},
    "click": {"cli"},
    "matplotlib": {"cli"},
    "torch": {"backends", "tuning"},
    **{name: {"summaries"} for name in ("jieba", "nltk", "rouge_chinese")},
    **{name: {"server"} for name in ("fastapi_offline", "h11", "llguidance", "prometheus_client")},
    **{name: {"server"} for name in ("pydantic", "pydantic_core", "uvicorn")},
    **{name: {"server", "web"} for name in ("fastapi", "starlette")},
    "gradio": {"web"},
    "typing_extensions": {"generate", "model", "engine", "server"},  # for mypy alone: Python 3.10 has no Unpack
}
# These find a file of their own folder by its name: the folder is the registry.
REGISTRIES = {"glmcpu", "glmcpu.formats", "glmcpu.models", "glmcpu.backends", "glmcpu.simd.isa"}
RUNS_CODE = {"pickle", "_pickle", "marshal", "shelve", "runpy", "code", "yaml", "jinja2"}
DEPENDENCIES = {"numpy", "numba", "sentencepiece", "safetensors", "huggingface_hub", "click"}

Module = str


def _sources() -> dict[Module, ast.Module]:
    """Every module of the package by its import name, parsed."""
    found = {}
    for folder, name in ((ROOT / "glmcpu", "glmcpu"), (ROOT / "convert", "glmcpu.convert")):
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            module = ".".join([name, *parts]).removesuffix(".__init__")
            found[module] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


SOURCES = _sources()
PACKAGES = {
    ".".join([name, *path.parent.relative_to(folder).parts])
    for folder, name in ((ROOT / "glmcpu", "glmcpu"), (ROOT / "convert", "glmcpu.convert"))
    for path in folder.rglob("__init__.py")
}


def _imports(module: Module) -> Iterator[Module]:
    """All modules, by full name, that a module imports anywhere, inside functions too."""
    for node in ast.walk(SOURCES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                package = module if module in PACKAGES else module.rpartition(".")[0]
                base = package.split(".")[: len(package.split(".")) - node.level + 1]
                origin = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                name = f"{origin}.{alias.name}"
                # The version is text, not a way to Model.
                if name != "glmcpu.__version__":
                    yield name if name in SOURCES else origin


def _ours(module: Module) -> set[Module]:
    return {m for m in _imports(module) if m.partition(".")[0] == "glmcpu"}


def _part(module: Module) -> str:
    """The name that stands in ROWS: the file or folder directly under the package."""
    return module.split(".")[1] if "." in module else module


def _row(module: Module) -> int:
    rows = [number for number, names in enumerate(ROWS) if _part(module) in names]
    assert rows, f"{module} has no row in tests/test_project.py: decide who may import it"
    return rows[0]


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_imports_point_down(module: Module) -> None:
    upward = {m for m in _ours(module) if _row(m) > _row(module)}
    assert not upward


def test_imports_make_no_circle() -> None:
    done: set[Module] = set()

    def visit(module: Module, path: tuple[Module, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for imported in _ours(module) & SOURCES.keys():
                visit(imported, (*path, module))
            done.add(module)

    for module in SOURCES:
        visit(module, ())


@pytest.mark.parametrize("module", sorted(m for m in SOURCES if _part(m) == "models"))
def test_a_generation_is_given_its_backend(module: Module) -> None:
    assert not {m for m in _ours(module) if m.startswith("glmcpu.backends.")}


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_libraries_are_imported_only_where_they_belong(module: Module) -> None:
    for name in {m.partition(".")[0] for m in _imports(module)} - {"glmcpu", "numpy"} - sys.stdlib_module_names:
        assert _part(module) in OUTSIDE.get(name, ()), f"{module} imports {name}"


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_no_module_runs_data_as_code(module: Module) -> None:
    imported = {m.partition(".")[0] for m in _imports(module)}
    assert not imported & RUNS_CODE
    assert "importlib" not in imported or module in REGISTRIES
    for node in ast.walk(SOURCES[module]):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec", "compile", "__import__"), f"line {node.lineno}"
        if isinstance(node, ast.keyword):
            assert node.arg != "allow_pickle" or ast.unparse(node.value) == "False", f"line {node.lineno}"


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_no_module_asserts(module: Module) -> None:
    lines = [node.lineno for node in ast.walk(SOURCES[module]) if isinstance(node, ast.Assert)]
    assert not lines  # python -O drops them, and what they checked


def _loaded_by(statement: str, folder: Path) -> set[str]:
    """The top-level packages in memory after `statement`, in a fresh interpreter."""
    code = f"{statement}; import sys; print(*{{m.partition('.')[0] for m in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    return set(run.stdout.split())


@pytest.mark.parametrize(
    ("statement", "dear"),
    [("import glmcpu", {*OUTSIDE}), ("import glmcpu.cli", {*OUTSIDE} - {"click"})],
)
def test_an_import_costs_numpy_and_nothing_else(tmp_path: Path, statement: str, dear: set[str]) -> None:
    assert not _loaded_by(statement, tmp_path) & dear


def test_only_the_torch_backend_and_the_tuner_import_torch() -> None:
    modules = {module for module in SOURCES if "torch" in {m.partition(".")[0] for m in _imports(module)}}
    assert {m for m in modules if "torch" not in m and not m.startswith("glmcpu.tuning")} == set()


def test_convert_is_installed_inside_the_package(tmp_path: Path) -> None:
    assert "glmcpu" in _loaded_by("import glmcpu.convert", tmp_path)


def _setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def test_the_version_is_the_same_in_both_places() -> None:
    assert glmcpu.__version__ == _setup()["metadata"]["version"]


def test_metadata_is_in_setup_cfg_only() -> None:
    assert "[project]" not in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert not (ROOT / "setup.py").exists()


def test_every_package_is_listed_for_installation() -> None:
    assert set(_setup()["options"]["packages"].split()) == PACKAGES


def test_the_core_dependencies_are_these_and_no_more() -> None:
    listed = _setup()["options"]["install_requires"].splitlines()
    assert {re.split(r"[<>=!~;\[ ]", line)[0] for line in listed if line} == DEPENDENCIES


def test_no_file_holds_a_path_of_somebodys_machine() -> None:
    path = re.compile(rb"/(root|work)/|/(home|Users)/[a-z]|[A-Z]:\\+Users\\")
    binary = (".npz", ".bin", ".safetensors", ".model")
    texts = [p for p in git_files() if p.suffix not in binary]
    assert not [str(p) for p in texts if path.search((ROOT / p).read_bytes())]


def _lines(text: str) -> set[str]:
    return {" ".join(line.split()) for line in text.splitlines()}


@pytest.mark.parametrize("readme", READMES)
def test_the_readmes_tree_is_the_tree(readme: str) -> None:
    if not git_files():
        pytest.skip("not a git checkout: nothing says which files are the project's")
    shown = _lines(part((ROOT / readme).read_text(encoding="utf-8"), "tree"))
    absent = _lines(tree(git_files())) - shown
    stale = shown - _lines(tree(git_files("--others", "--exclude-standard")))
    assert not absent | stale, "run: python tests/update_readme.py"


@pytest.mark.parametrize("readme", READMES)
def test_the_readmes_help_is_what_the_commands_print(readme: str) -> None:
    shown = part((ROOT / readme).read_text(encoding="utf-8"), "help")
    assert shown.split() == help_texts().split(), "run: python tests/update_readme.py"


@pytest.mark.parametrize("readme", READMES)
def test_the_readmes_commands_are_those_of_the_ci(readme: str) -> None:
    text, ci = (ROOT / readme).read_text(encoding="utf-8"), (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "pip install . && glmcpu chat" in text
    test_command = "pip install '.[test]' && pytest"
    assert test_command in text
    for command in test_command.split(" && "):
        assert command in ci.splitlines()


@pytest.mark.parametrize("readme", READMES)
def test_every_file_a_readme_links_to_exists(readme: str) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / readme).read_text(encoding="utf-8"))
    assert not [link for link in links if not (ROOT / link).exists()]
