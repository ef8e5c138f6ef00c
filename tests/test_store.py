"""The models folder, and how a name, a path or a near miss becomes a file or an answer."""

from pathlib import Path

import pytest

from glmcpu import store
from glmcpu.errors import DataError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    monkeypatch.setenv("GLMCPU_HOME", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


def _make(home: Path, *names: str) -> None:
    home.mkdir(exist_ok=True)
    for name in names:
        (home / name).write_bytes(b"x")


def test_home_is_the_variable_where_it_is_set(home: Path) -> None:
    assert store.home() == home


@pytest.mark.parametrize(
    ("platform", "variable", "expected"),
    [
        ("linux", "XDG_DATA_HOME", "data/glmcpu"),
        ("linux", None, "me/.local/share/glmcpu"),
        ("darwin", None, "me/Library/Application Support/glmcpu"),
        ("win32", "LOCALAPPDATA", "data/glmcpu"),
        ("win32", None, "me/AppData/Local/glmcpu"),
    ],
)
def test_home_is_the_platforms_data_folder_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str, variable: str | None, expected: str
) -> None:
    for name in ("GLMCPU_HOME", "XDG_DATA_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, str(tmp_path / "data"))
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "me")
    assert store.home() == tmp_path / expected


def test_a_folder_that_does_not_exist_holds_no_models(home: Path) -> None:
    assert store.models() == []
    assert not home.exists()


def test_models_are_the_finished_safetensors_files_by_name(home: Path) -> None:
    _make(home, "b.safetensors", "a.safetensors", ".a.safetensors", "a.txt", ".b.safetensors.12ab.glmcpu-partial")
    (home / "folder.safetensors").mkdir()
    assert [p.name for p in store.models()] == ["a.safetensors", "b.safetensors"]


def test_find_takes_a_name_with_and_without_its_suffix(home: Path) -> None:
    _make(home, "chatglm-6b-int4_g32.safetensors")
    expected = home / "chatglm-6b-int4_g32.safetensors"
    assert store.find("chatglm-6b-int4_g32") == store.find("chatglm-6b-int4_g32.safetensors") == expected


def test_find_takes_a_path_before_a_model_of_the_same_name(home: Path, tmp_path: Path) -> None:
    _make(home, "m.safetensors")
    (tmp_path / "m.safetensors").write_bytes(b"y")
    assert store.find("m.safetensors") == Path("m.safetensors")
    assert store.find(tmp_path / "m.safetensors") == tmp_path / "m.safetensors"
    assert store.find("m") == home / "m.safetensors"


def test_find_takes_an_existing_file_without_a_suffix(home: Path, tmp_path: Path) -> None:
    (tmp_path / "packed").write_bytes(b"y")
    assert store.find("packed") == Path("packed")


def test_a_near_miss_is_suggested(home: Path) -> None:
    _make(home, "chatglm-6b-int4_g32.safetensors")
    with pytest.raises(DataError, match="did you mean 'chatglm-6b-int4_g32'"):
        store.find("chatglm-6b-int4g32")
    with pytest.raises(DataError, match="no such file; did you mean 'chatglm-6b-int4_g32'"):
        store.find("chatglm-6b-int4g32.safetensors")


def test_a_name_far_from_all_lists_the_models(home: Path) -> None:
    _make(home, "one.safetensors", "two.safetensors")
    with pytest.raises(DataError, match="the models there are: one, two"):
        store.find("zzzzzzzz")


def test_a_missing_path_is_named_and_cannot_write_to_the_terminal(home: Path) -> None:
    with pytest.raises(DataError) as error:
        store.find("\x1b[31m/none.safetensors")
    assert "\x1b" not in str(error.value)
    assert "glmcpu convert" in str(error.value)


def test_only_gives_the_single_model(home: Path) -> None:
    _make(home, "one.safetensors")
    assert store.only() == home / "one.safetensors"


def test_where_there_is_no_model_the_embedded_one_is_the_only_one(home: Path) -> None:
    assert store.only() == store.embedded()
    assert store.embedded().is_file()


def test_demo_is_the_embedded_model_unless_another_is_called_so(home: Path) -> None:
    assert store.find("demo") == store.embedded()
    _make(home, "demo.safetensors")
    assert store.find("demo") == home / "demo.safetensors"


def test_only_lists_the_names_when_there_are_several(home: Path) -> None:
    _make(home, "one.safetensors", "two.safetensors")
    with pytest.raises(DataError, match=r"2 models in .*; name one of: one, two"):
        store.only()
