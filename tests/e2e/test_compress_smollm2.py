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

import pytest

from subsecond.cli import main as cli
from subsecond.models.checkpoint import open_checkpoint

pytestmark = pytest.mark.real_model

TEXT = Path(__file__).parents[1] / "data" / "moby_dick.txt"
SMALL = """
version = 1
description = "Quick, for a test."
[[stage]]
kind = "quantize"
bits = "4"
method = "nearest"
"""


def figures_of(capsys: pytest.CaptureFixture[str], model: Path, reference: Path, *flags: str) -> tuple[float, float]:
    """Mean KL and top-1 agreement."""
    arguments = ("--reference", str(reference), "--text", str(TEXT), "--windows", "2", "--window-tokens", "128")
    assert cli.main(["eval", str(model), *arguments, *flags, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    return found["kl_mean"]["value"], found["top1_agreement"]["value"]


def test_eight_bits_lose_little_and_nested_readings_no_more_than_plain_ones(
    capsys: pytest.CaptureFixture[str], smollm2_path: Path, tmp_path: Path
) -> None:
    made = tmp_path / "made"
    arguments = ("--recipe", "int8", "--out", str(made), "--eval-windows", "0")
    assert cli.main(["compress", str(smollm2_path), *arguments]) == 0
    capsys.readouterr()
    assert open_checkpoint(made).readings == {"default": "int8"}
    figures = {
        weights: figures_of(capsys, made, smollm2_path, *(("--weights", weights) if weights != "int8" else ()))
        for weights in ("int8", "nested8", "int4", "nested4")
    }
    losses = {weights: kl for weights, (kl, _) in figures.items()}
    assert 1e-4 < losses["int8"] < 0.015
    assert figures["int8"][1] > 0.93
    assert losses["nested8"] < 1.1 * losses["int8"]
    assert losses["int8"] < losses["nested4"] < 1.1 * losses["int4"]


def test_a_killed_run_goes_on_to_the_same_bytes(smollm2_path: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "small.toml"
    recipe.write_text(SMALL)
    hashes = []
    for name, num_kills in (("whole", 0), ("killed", 3)):
        out, work = tmp_path / name, tmp_path / f".{name}.unfinished" / "steps-0"
        command = [
            sys.executable, "-m", "subsecond", "compress", str(smollm2_path), "--recipe", str(recipe),
            "--out", str(out), "--eval-windows", "0", "--json",
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
