"""The models on disk: where they are, what a name means, and that a name never leaves the store."""

from __future__ import annotations

from pathlib import Path

import pytest

from subsecond.core.errors import InputError, IntegrityError
from subsecond.formats.artifact import FOLDER_NAME, MANIFEST_NAME
from subsecond.models import store


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SUBSECOND_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "OLLAMA_MODELS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def add_model(name: str, num_bytes: int = 10) -> Path:
    path = store.model_path(name)
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(num_bytes))
    return path


def test_home_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert store.home() == tmp_path / "home"
    monkeypatch.delenv("SUBSECOND_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert store.home() == tmp_path / "cache" / "subsecond"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert store.home() == tmp_path / ".cache" / "subsecond"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert store.home() == tmp_path / ".cache" / "subsecond"


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/etc", "A", "a\n", "-x", "a" * 65, "a\0b", "a\\b"])
def test_a_name_cannot_leave_the_store(name: str) -> None:
    with pytest.raises(InputError, match="is no model name"):
        store.model_path(name)
    with pytest.raises(InputError):
        store.remove(name)


def test_an_existing_path_comes_before_a_name(tmp_path: Path) -> None:
    add_model("mine")
    (tmp_path / "mine").touch()
    assert store.resolve("mine") == Path("mine")
    file = tmp_path / "Some Model.gguf"
    file.touch()
    assert store.resolve(str(file)) == file


def test_a_mere_folder_does_not_hide_a_model(tmp_path: Path) -> None:
    stored = add_model("mine")
    for name in ("mine", "smollm2-135m", "other"):
        (tmp_path / name).mkdir()
    assert store.resolve("mine") == stored
    assert store.resolve("./mine") == Path("mine")
    assert store.resolve("other") == Path("other")
    with pytest.raises(InputError, match="subsecond pull smollm2-135m"):
        store.resolve("smollm2-135m")
    manifest = tmp_path / "mine" / FOLDER_NAME / MANIFEST_NAME
    manifest.parent.mkdir()
    manifest.touch()
    assert store.resolve("mine") == Path("mine")


def test_a_model_of_another_size_than_the_catalogue_says_is_refused() -> None:
    add_model("smollm2-135m", 10)
    with pytest.raises(IntegrityError, match=r"10 bytes instead of 98,362,432.*subsecond pull smollm2-135m"):
        store.resolve("smollm2-135m")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("smollm2-135m", "fetch it with: subsecond pull smollm2-135m"),
        ("smolm2-135", "did you mean smollm2-135m"),
        ("SmolLM2-135M", "did you mean smollm2-135m"),
        ("mine-2", "there is no model 'mine-2'; did you mean mine"),
        ("zzzz", "known names: mine, qwen2.5-coder-0.5b"),
        ("folder/model.gguf", "there is no file or folder 'folder/model.gguf'"),
        ("model.gguf", "there is no file or folder 'model.gguf'"),
        ("", "there is no file or folder ''"),
        ("x" * 5000, "there is no model 'xxx"),
        ("bad\0name", "there is no model"),
    ],
)
def test_what_is_not_there_is_explained(model: str, message: str) -> None:
    add_model("mine")
    with pytest.raises(InputError) as caught:
        store.resolve(model)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 500


def test_models_are_listed_with_their_sizes() -> None:
    assert store.list_models() == ()
    path = add_model("beta", 7)
    add_model("alpha", 5)
    artifact = path.parent / store.ARTIFACT_FOLDER / "weights" / "packed.bin"
    artifact.parent.mkdir(parents=True)
    artifact.write_bytes(bytes(30))
    store.model_folder("half").mkdir()
    (store.model_folder("half") / "model.gguf.part").touch()
    alpha, beta = store.list_models()
    assert (alpha.name, alpha.origin, alpha.file_bytes, alpha.artifact_bytes) == ("alpha", "subsecond", 5, 0)
    assert (beta.name, beta.path, beta.file_bytes, beta.artifact_bytes) == ("beta", path, 7, 30)


def test_remove_deletes_the_whole_folder() -> None:
    path = add_model("alpha", 5)
    (path.parent / "rest.part").write_bytes(bytes(3))
    assert store.remove("alpha") == 8
    assert not path.parent.exists()
    with pytest.raises(InputError, match="there is no model alpha on disk; there are: none"):
        store.remove("alpha")


def test_remove_leaves_what_a_link_points_to(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.mkdir()
    (target / "model.gguf").touch()
    folder = store.model_folder("linked")
    folder.parent.mkdir(parents=True)
    folder.symlink_to(target)
    store.remove("linked")
    assert (target / "model.gguf").exists()
    assert not folder.is_symlink()
