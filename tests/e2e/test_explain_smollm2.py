"""`subsecond explain` with real weights: a faithful variant does little damage, a lossy or faulty one is found out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from subsecond import _native
from subsecond.backends import native
from subsecond.backends.native.weights import PackedMatrix, PackedWeights
from subsecond.backends.torch import TorchBackend
from subsecond.graph.taps import residual_values
from subsecond.measure.layers import LayerDivergence, layer_findings, summarize_layers, window_divergence
from subsecond.models.checkpoint import open_checkpoint

pytestmark = pytest.mark.real_model
WINDOW_TOKENS = 64


def explain(path: Path, home: Path, *arguments: str) -> dict[str, Any]:
    """The report of one window; with one thread, so that other tests beside it do not hold it up at every barrier."""
    flags = ("--json", "--windows", "1", "--window-tokens", str(WINDOW_TOKENS), "--num-threads", "1", *arguments)
    done = subprocess.run(
        [sys.executable, "-m", "subsecond", "explain", str(path), *flags],
        env={**os.environ, "SUBSECOND_HOME": str(home), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_a_lossy_variant_is_explained(smollm2_path: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("What is the capital of France?\n")
    prompts = ("--prompts", str(tmp_path / "prompts.txt"))
    report = explain(
        smollm2_path, tmp_path, *prompts, "--weights", "int4", "--max-tokens", "8", "--html", str(tmp_path / "r.html")
    )
    assert report["variant"].startswith("int4/")
    assert len(report["layers"]) == 61
    assert 0.02 < report["layers"][-1]["relative_error"] < 1.0
    assert 0 < report["num_flips"] < report["num_scored_tokens"] == WINDOW_TOKENS - 1
    assert len(report["answers"]) == 1
    assert report["attribution"]["rank_correlation"] > 0.3
    assert report["time"]["num_new_tokens"] == 8
    assert (tmp_path / "r.html").stat().st_size > 10_000


def test_wrong_scales_in_one_layer_are_named(smollm2_path: Path) -> None:
    checkpoint = open_checkpoint(smollm2_path)
    graph, name = checkpoint.graph(WINDOW_TOKENS), "blk.17.attn_output.weight"
    reference = TorchBackend(graph, checkpoint.weights, num_blocks=2, block_tokens=32, max_rows=WINDOW_TOKENS)
    served = native.load(checkpoint, context_tokens=WINDOW_TOKENS, max_rows=WINDOW_TOKENS)
    text = Path(__file__).parents[1].joinpath("data", "moby_dick.txt").read_text(encoding="utf-8")
    window = np.array(checkpoint.tokenizer.encode(text[:2000])[:WINDOW_TOKENS], np.int32)
    names = residual_values(graph)

    def look(weights: PackedWeights) -> tuple[LayerDivergence, ...]:
        backend = native.NativeBackend(served.segment, weights, replace(served.config, num_blocks=2))
        taps = native.NativeTaps(backend, names, max_rows=WINDOW_TOKENS, num_tokens=WINDOW_TOKENS)
        found = window_divergence(taps.values, lambda b: reference.values(b, names), names, window, 32, 32)
        return summarize_layers(names, [found])

    assert layer_findings(look(served.weights)) == []
    num_outputs, num_inputs = checkpoint.shapes[name]
    values = np.ascontiguousarray(checkpoint.weights.dequantize(name) * np.float32(8)).view(np.uint8).reshape(-1)
    data = np.zeros(_native.packed_size("F32", num_outputs, num_inputs), np.uint8)
    _native.pack_into("F32", num_outputs, num_inputs, values, data)
    wrong = {**served.weights.matrices, name: PackedMatrix("F32", num_outputs, num_inputs, data)}
    findings = layer_findings(look(PackedWeights(wrong, served.weights.vectors)))
    assert findings and findings[0].startswith("the attention of layer 17 (blk.17.attn)")
