"""`subsecond eval` with real weights in a process of its own: quality of int8 against the file, and a planted fault."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from subsecond.formats.gguf import GgufFile
from subsecond.models.weights import GgufWeights

pytestmark = pytest.mark.real_model
TEXT = Path(__file__).parents[1] / "data" / "moby_dick.txt"
Q4_1_BLOCK_BYTES = 20
FLAGS = ("--text", str(TEXT), "--windows", "2", "--window-tokens", "96")


def run_eval(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "subsecond", "eval", *arguments, *FLAGS, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_int8_is_near_its_own_weights_but_not_the_same(smollm2_path: Path) -> None:
    found = run_eval(str(smollm2_path), "--reference", "--weights", "int8")
    assert found["variant"].startswith("int8/")
    assert 1e-4 < found["kl_mean"]["low"] <= found["kl_mean"]["value"] < 0.02
    assert found["top1_agreement"]["value"] > 0.9
    assert 20 < found["perplexity_reference"]["value"] < 200
    assert found["num_tokens"] == 190 and found["findings"] == []


def test_wrong_scales_of_one_layer_are_found(smollm2_path: Path, tmp_path: Path) -> None:
    weights = GgufWeights(GgufFile.open(smollm2_path))
    raw = weights.raw("blk.4.ffn_down.weight")
    content = smollm2_path.read_bytes()
    place = content.find(raw.tobytes())
    blocks = np.frombuffer(content, np.uint8, raw.nbytes, place).reshape(-1, Q4_1_BLOCK_BYTES).copy()
    halves = blocks[:, :4].copy().view(np.float16)  # scale and minimum of each block
    blocks[:, :4] = (halves * np.float16(16)).view(np.uint8)
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(content[:place] + blocks.tobytes() + content[place + raw.nbytes :])
    found = run_eval(str(broken), "--reference", str(smollm2_path))
    assert found["findings"]
    assert f"subsecond explain {broken} --reference {smollm2_path}" in found["findings"][0]
