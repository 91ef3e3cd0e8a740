"""What `pull` packs, repairs and refuses, and what `rm` says of folders without a model; a tiny model, no network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from subsecond.cli import main as cli
from subsecond.cli import pull
from subsecond.formats.artifact import Artifact, is_artifact
from subsecond.models import store
from subsecond.models.checkpoint import open_checkpoint
from tests.unit.models.test_checkpoint import write_gguf
from tests.unit.tiny_decoder import TINY, tiny_shapes


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SUBSECOND_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    printable = [chr(code) for code in range(0x21, 0x7F)]
    tokens = ["<end>", *printable, "\u0120", printable[0] + printable[1]]
    return write_gguf(tmp_path / "tiny.gguf", tiny_shapes(replace(TINY, vocab_size=len(tokens))), tokens=tokens)


def inode(model: Path) -> int:
    return (model.parent / "subsecond" / "manifest.json").stat().st_ino


def test_a_file_of_the_users_own_is_packed_once(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pull", "tiny.gguf"]) == 0
    assert "packed in subsecond" in capsys.readouterr().out
    assert open_checkpoint(model).artifact is not None
    before = inode(model)
    assert cli.main(["pull", str(model), "--json"]) == 0
    assert inode(model) == before


@pytest.mark.parametrize("name", ["packed.bin", "tokenizer.json", "manifest.json"])
@pytest.mark.parametrize("is_cut", [True, False], ids=["cut", "changed"])
def test_a_damaged_artifact_is_made_anew(model: Path, name: str, is_cut: bool) -> None:
    assert cli.main(["pull", str(model)]) == 0
    place = model.parent / "subsecond" / name
    content = place.read_bytes()
    place.write_bytes(content[:-9] if is_cut else b"}" + content[1:])
    assert cli.main(["pull", str(model)]) == 0
    Artifact.open(model.parent).verify()
    assert place.read_bytes() == content


def test_the_artifact_of_another_file_is_not_replaced(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pull", str(model)]) == 0
    other = model.with_name("other.gguf")
    other.write_bytes(model.read_bytes())
    assert cli.main(["pull", str(other)]) == 1
    assert "move other.gguf into a folder of its own" in capsys.readouterr().err
    model.unlink()
    assert cli.main(["pull", str(other)]) == 0
    assert Artifact.open(other.parent).manifest.source.name == "other.gguf"


def test_a_file_that_is_not_there_is_no_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pull", "missing.gguf"]) == 1
    assert "there is no file missing.gguf" in capsys.readouterr().err
    assert not is_artifact(tmp_path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("models", "models is a folder without config.json; in it: a.gguf, b.txt; a path to pull is a .gguf file or"),
        ("models/b.txt", "b.txt is no .gguf file"),
        ("model.safetensors", "model.safetensors is only a part of a model; give the folder that holds it"),
    ],
)
def test_a_path_that_is_no_model(tmp_path: Path, given: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "models").mkdir()
    for name in ("models/a.gguf", "models/b.txt", "model.safetensors"):
        (tmp_path / name).touch()
    assert cli.main(["pull", given]) == 1
    assert message in capsys.readouterr().err
    if given.endswith(".safetensors"):
        assert cli.main(["run", given, "hi"]) == 1
        assert "only a part of a model; give the folder that holds it" in capsys.readouterr().err


def test_an_artifact_of_an_older_version_is_renewed(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pull", str(model)]) == 0
    place = model.parent / "subsecond" / "manifest.json"
    content = place.read_text()
    place.write_text(content.replace('"version": 2', '"version": 1'))
    assert open_checkpoint(model).artifact is None
    assert cli.main(["pull", str(model)]) == 0
    assert place.read_text() == content
    assert open_checkpoint(model).artifact is not None


def test_the_size_of_a_folder_is_that_of_its_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for name in ("model.safetensors", "consolidated.safetensors"):
        (tmp_path / name).write_bytes(bytes(7))
    assert pull._num_bytes(tmp_path) == 7


def test_a_model_that_is_fetched_anew_is_new(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = store.model_path("example")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"damaged")

    def ensure(*_: object) -> Path:
        part = path.with_suffix(".part")
        part.write_bytes(b"sound")
        return part.replace(path)

    monkeypatch.setattr("subsecond.cli.pull.pack", lambda *_: None)
    monkeypatch.setattr("subsecond.models.catalogue.ensure", ensure)
    assert cli.main(["pull", "example"]) == 0
    assert "fetched to" in capsys.readouterr().out


def test_rm_says_when_there_was_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store.model_folder("empty").mkdir(parents=True)
    (store.model_folder("empty") / ".lock").touch()
    store.model_folder("linked").symlink_to(tmp_path)
    assert cli.main(["rm", "empty"]) == 0
    assert capsys.readouterr().out == "empty deleted: its folder held nothing\n"
    assert cli.main(["rm", "linked"]) == 0
    assert "what it points to is still there" in capsys.readouterr().out
