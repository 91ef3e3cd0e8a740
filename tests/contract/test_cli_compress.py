"""`subsecond compress` as people and scripts see it, over a tiny random model: plan, result, resuming, refusals."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from subsecond.cli import main as cli
from subsecond.compress import segment_run, work
from subsecond.compress.recipe import built_in_recipes, find_recipe
from subsecond.models.checkpoint import open_checkpoint
from tests.fuzz.gguf_inputs import valid_model

TEXT = "The hello world is the world of the hello. Who tells the hello to the world? " * 60
ROTATE = 'version = 1\n[[stage]]\nkind = "rotate"\ntype = "f32"\n'
SMALL = "version = 1\n[calibration]\nwindows = 4\nwindow-tokens = 16\nheld-out-windows = 2\n"
PRUNE = SMALL + '[[stage]]\nkind = "prune-heads"\nkeep = 0.5\n'


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the model `m.gguf` and recipes, which is the working folder."""
    monkeypatch.setenv("SUBSECOND_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(work, "EVAL_WINDOW_TOKENS", 32)
    monkeypatch.setattr(work, "PROMPT_TOKENS", 16)
    (tmp_path / "m.gguf").write_bytes(valid_model(0))
    (tmp_path / "t.txt").write_text(TEXT)
    (tmp_path / "rotate.toml").write_text(ROTATE)
    (tmp_path / "prune.toml").write_text(PRUNE)
    return tmp_path


def compress(*arguments: str) -> int:
    return cli.main(["compress", "m.gguf", *arguments])


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert compress(*arguments, "--json") == 0
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    found: dict[str, Any] = json.loads(printed)
    return found


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert compress(*arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def digest(folder: Path) -> dict[str, str]:
    """Hashes of the files of a model, without reports, which say when they were made."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.parent.name != "subsecond")
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.name not in (work.REPORT, work.PLAN, "report.html")
    }


def test_the_result_is_a_model_with_a_report(capsys: pytest.CaptureFixture[str]) -> None:
    report = run_json(capsys, "--recipe", "rotate.toml", "--out", "made", "--eval-windows", "1")
    made = Path("made")
    assert {"config.json", "model.safetensors", "report.json", "report.html", "recipe.toml", "plan.json"} <= {
        path.name for path in made.iterdir()
    }
    assert open_checkpoint(made).artifact is not None, "packed weights lie beside it"
    assert report["quality"]["kl_mean"]["value"] < 1e-4
    assert report["stages"][0]["decisions"][0]["part"] == "model"
    assert report["weight_bytes"]["result"] > report["weight_bytes"]["original"] > 0
    assert set(report["speed"]) == {"original", "result"}
    assert (made / "recipe.toml").read_text() == ROTATE
    assert "seed 0" in (made / "report.html").read_text()
    assert [path.name for path in Path.cwd().glob(".*")] == [], "nothing of the work stays"


def test_a_plan_says_what_it_takes_and_does_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    plan = run_json(capsys, "--recipe", "prune.toml", "--out", "made", "--text", "t.txt", "--plan")
    assert plan["seconds"] == pytest.approx(sum(plan["phases"].values()))
    assert {"1. prune-heads", "quality", "packing"} <= set(plan["phases"])
    assert plan["peak_bytes"] > 0 < plan["disk_bytes"]
    assert plan["result_bytes"] > 0 < plan["model_bytes"]
    assert not list(Path.cwd().glob("*made*")) + list(Path.cwd().glob(".made*"))
    text = compress("--recipe", "prune.toml", "--out", "made", "--plan"), capsys.readouterr().out
    assert "memory" in text[1]


def interrupt_at(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, call: int) -> None:
    """Let the given call of a function end by Ctrl-C."""
    original: Callable[..., Any] = getattr(module, name)
    calls: list[None] = []

    def replaced(*arguments: Any, **keywords: Any) -> Any:
        calls.append(None)
        if len(calls) == call:
            raise KeyboardInterrupt
        return original(*arguments, **keywords)

    monkeypatch.setattr(module, name, replaced)


@pytest.mark.parametrize(
    ("module", "name", "call"),
    [(segment_run._Store, "save", 1), (segment_run._Store, "save", 4), (work.Work, "_quality", 1)],
)
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, module: Any, name: str, call: int
) -> None:
    arguments = ("--recipe", "prune.toml", "--text", "t.txt", "--eval-windows", "1")
    assert compress(*arguments, "--out", "whole") == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, module, name, call)
        assert compress(*arguments, "--out", "made") == cli.EXIT_INTERRUPTED
    assert not Path("made").exists()
    capsys.readouterr()
    assert compress(*arguments, "--out", "made") == 0
    assert "going on" in capsys.readouterr().err
    assert digest(Path("made")) == digest(Path("whole"))


def test_another_recipe_does_not_go_on_with_the_work_of_the_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, work.Work, "_quality", 1)
        assert compress("--recipe", "rotate.toml", "--out", "made") == cli.EXIT_INTERRUPTED
    Path("rotate.toml").write_text(ROTATE + "seed = 2\n")
    capsys.readouterr()
    assert compress("--recipe", "rotate.toml", "--out", "made", "--eval-windows", "0") == 0
    assert "going on" not in capsys.readouterr().err
    report = json.loads(Path("made/report.json").read_text())
    assert report["recipe"]["stages"][0]["seed"] == 2
    assert report["quality"] is report["speed"] is None
    assert "Quality and speed were not measured" in Path("made/report.html").read_text()


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("version = 2\n", "version is 2; this program reads version 1"),
        ("version = 1\n", "a recipe has 1 to 32 stages"),
        ("version = 1\nstages = 3\n", "'stages' is not known in a recipe; known are version, description"),
        ('version = 1\n[[stage]]\nkind = "shrink"\n', "stage 1: kind is 'shrink'; known are rotate, "),
        ('version = 1\n[[stage]]\nkind = "rotate"\nspeed = 3\n', "'speed' is not known; known are seed, type"),
        ('version = 1\n[[stage]]\nkind = "rotate"\ntype = "f8"\n', "type='f8' is not allowed; give one of f16, f32"),
        ("version = 1\n[calibration]\nwindows = 0\n", "windows=0 is not allowed"),
        ("version = \n", "is not valid TOML"),
    ],
)
def test_a_recipe_that_is_not_valid_is_refused_before_any_work(
    capsys: pytest.CaptureFixture[str], recipe: str, expected: str
) -> None:
    Path("r.toml").write_text(recipe)
    message = refusal(capsys, "--recipe", "r.toml", "--out", "made")
    assert expected in message
    assert "r.toml" in message
    assert not list(Path.cwd().glob(".made*"))


def test_what_cannot_be_done_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no recipe 'shrink'; give one of" in refusal(capsys, "--recipe", "shrink", "--out", "made")
    Path("made").mkdir()
    (Path("made") / "x").touch()
    assert "made is there already and not empty" in refusal(capsys, "--recipe", "rotate.toml", "--out", "made")
    assert "there is no such file" in refusal(
        capsys, "--recipe", "prune.toml", "--out", "other", "--text", "missing.txt"
    )
    Path("t.txt").write_text("hello")
    message = refusal(capsys, "--recipe", "prune.toml", "--out", "other", "--text", "t.txt")
    assert "learns from 4 and judges by 2. Give a longer text" in message
    assert "--eval-windows -1 is not allowed" in refusal(
        capsys, "--recipe", "rotate.toml", "--out", "other", "--eval-windows", "-1"
    )


@pytest.mark.parametrize("name", built_in_recipes())
def test_recipes_of_the_package_are_valid_and_say_what_they_do(name: str) -> None:
    recipe = find_recipe(name)
    assert recipe.description.endswith(".")
    assert recipe.name == name
