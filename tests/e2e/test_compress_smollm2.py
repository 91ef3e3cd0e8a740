"""Recipes on the real small model: what is promised of eight bits, of nested readings, and of a run that is killed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from subsecond.cli import main as cli
from subsecond.models.checkpoint import open_checkpoint

pytestmark = pytest.mark.real_model

TEXT = Path(__file__).parents[1] / "data" / "moby_dick.txt"
SMALL = """
version = 1
description = "Small enough for a test."
[calibration]
windows = 2
window_tokens = 64
held_out_windows = 1
[[stage]]
kind = "quantize"
bits = "4"
method = "gptq"
sweeps = 0
"""


def compressed(capsys: pytest.CaptureFixture[str], model: Path, recipe: str, out: Path) -> dict[str, Any]:
    assert (
        cli.main(["compress", str(model), "--recipe", recipe, "--out", str(out), "--eval-windows", "1", "--json"]) == 0
    )
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def test_eight_bits_lose_little_and_nested_ones_no_more(
    capsys: pytest.CaptureFixture[str], smollm2_path: Path, tmp_path: Path
) -> None:
    report = compressed(capsys, smollm2_path, "int8", tmp_path / "int8")
    assert report["quality"]["kl_mean"]["value"] < 0.02
    assert report["quality"]["top1_agreement"]["value"] > 0.93
    assert open_checkpoint(tmp_path / "int8").readings == {"default": "int8"}
    nested = compressed(capsys, smollm2_path, "nested", tmp_path / "nested")
    assert nested["quality"]["kl_mean"]["value"] < 1.1 * report["quality"]["kl_mean"]["value"]


def test_a_killed_run_goes_on_to_the_same_bytes(smollm2_path: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "small.toml"
    recipe.write_text(SMALL)
    hashes = []
    for name, num_kills in (("whole", 0), ("killed", 3)):
        out, work = tmp_path / name, tmp_path / f".{name}.unfinished" / "steps-0"
        command = [
            sys.executable, "-m", "subsecond", "compress", str(smollm2_path), "--recipe", str(recipe),
            "--text", str(TEXT), "--out", str(out), "--eval-windows", "0", "--json",
        ]  # fmt: skip
        for kill in range(num_kills):
            with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
                while process.poll() is None and len(list(work.glob("segment-*"))) < 4 * (kill + 1):
                    time.sleep(0.02)
                os.kill(process.pid, signal.SIGKILL)
            assert not out.exists()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        hashes.append(hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest())
    assert hashes[0] == hashes[1]
