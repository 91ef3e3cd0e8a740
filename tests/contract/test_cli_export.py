"""`subsecond export` as people and scripts see it, on a model of two layers with random weights."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from subsecond.cli import main as cli
from subsecond.models.checkpoint import open_checkpoint
from tests.unit.tiny_gguf import SMALL, mixed, tensors_of, write_gguf

Export = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBSECOND_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    write_gguf(Path("m.gguf"), SMALL, tensors_of(SMALL, mixed))


@pytest.fixture
def export(capsys: pytest.CaptureFixture[str]) -> Export:
    def run(*arguments: str) -> tuple[int, dict[str, Any]]:
        code = cli.main(["export", "m.gguf", "--json", *arguments])
        return code, json.loads(capsys.readouterr().out)

    return run


@pytest.mark.parametrize(
    ("to", "out", "types"),
    [
        ("gguf", "a.gguf", {"Q4_0": 10, "Q8_0": 2, "BF16": 2, "F16": 1, "F32": 5}),
        ("onnx", "a", {"Q4_0": 10, "Q8_0": 2, "BF16": 2, "F16": 1}),
        ("compressed-tensors", "b", {"I32": 12, "BF16": 2, "F16": 1, "F32": 5}),
    ],
)
def test_what_was_written_is_told(export: Export, to: str, out: str, types: dict[str, int]) -> None:
    code, result = export("--to", to, "--out", out)
    assert code == 0
    assert (result["path"], result["types"]) == (out, types)
    files = [Path(out)] if Path(out).is_file() else list(Path(out).rglob("*"))
    assert result["num_bytes"] == sum(path.stat().st_size for path in files)
    if to != "onnx":
        assert open_checkpoint(out).shapes == open_checkpoint("m.gguf").shapes


def test_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", "m.gguf", "--to", "compressed-tensors", "--weights", "int8", "--out", "w8"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("w8: compressed-tensors (int-quantized), ")
    assert "\nnote: linears are int8 with a scale for each output" in printed and "unrotated" in printed


def test_int8_is_for_one_format(export: Export) -> None:
    code, result = export("--to", "gguf", "--out", "a.gguf", "--weights", "int8")
    assert code == 1 and "--weights int8 is for --to compressed-tensors" in result["error"]["message"]
    assert not Path("a.gguf").exists()


def test_what_is_there_stays(export: Export) -> None:
    Path("a.gguf").write_text("mine")
    Path("folder").mkdir()
    Path("folder/mine").write_text("mine")
    for to, out in (("gguf", "a.gguf"), ("onnx", "folder"), ("compressed-tensors", "folder")):
        code, result = export("--to", to, "--out", out)
        assert code == 1 and f"{out} is there already" in result["error"]["message"]
    assert Path("a.gguf").read_text() == Path("folder/mine").read_text() == "mine"
    assert sorted(path.name for path in Path().iterdir()) == ["a.gguf", "folder", "m.gguf"]


def test_an_unknown_format_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["export", "m.gguf", "--to", "tflite", "--out", "a"])
    assert "choose from" in capsys.readouterr().err


def test_without_onnx_it_says_how_to_get_it(export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("subsecond.compress.export_onnx")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnx", None)
    code, result = export("--to", "onnx", "--out", "a")
    assert code == 1 and "pip install 'subsecond[export]'" in result["error"]["message"]
