"""Pruning a real model: fitting what stays pays off, and methods that look at inputs beat those that do not."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from subsecond.backends.batch import Float32, Int32
from subsecond.backends.torch import TorchBackend
from subsecond.compress import stage_prune_width, stage_sparsify
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


def windows_of(checkpoint: Checkpoint, *, are_judged: bool) -> Int32:
    """Windows of the packaged texts: those that results are judged by, or all others, to learn from."""
    found = []
    for each in packaged_texts():
        if (each.name in JUDGED) == are_judged:
            ids = checkpoint.tokenizer.encode(each.text)
            whole = len(ids) // WINDOW_TOKENS * WINDOW_TOKENS
            found.append(np.array(ids[:whole], np.int32).reshape(-1, WINDOW_TOKENS))
    return np.concatenate(found)


@pytest.fixture(scope="module")
def judge(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Quality of the model after a stage with settings."""
    judged, learned = windows_of(checkpoint, are_judged=True), windows_of(checkpoint, are_judged=False)

    def logits(config: ModelConfig, weights: WeightSource) -> list[Float32]:
        graph = build_graph(config, weights.shapes)
        backend = TorchBackend(graph, weights, num_blocks=8, block_tokens=32, max_rows=WINDOW_TOKENS)
        return [each[:-1].copy() for each in forward_windows(backend, judged)]

    expected = logits(checkpoint.config, checkpoint.weights)

    @cache
    def run(stage: Any, settings: Any) -> QualityReport:
        sink = KeepingSink(checkpoint.config)
        folder = tmp_path_factory.mktemp("stage")
        stage.run(StageJob(checkpoint, sink, Calibration(learned, judged, "texts"), folder, lambda *_: None), settings)
        found = logits(sink.config, HeldWeights(sink.tensors))
        pairs = zip(expected, found, judged, strict=True)
        return summarize([compare_logits(before, after, window[1:]) for before, after, window in pairs])

    return run


@pytest.mark.parametrize("method", stage_prune_width.METHODS)
def test_fitting_the_neurons_that_stay_cuts_the_divergence_by_a_third(judge: Any, method: str) -> None:
    kl = {}
    for refit in (False, True):
        settings = stage_prune_width.Settings(keep=0.8, method=method, refit=refit)
        kl[refit] = judge(stage_prune_width, settings).mean_kl.value
    assert kl[True] <= 0.7 * kl[False], kl


def test_half_of_the_weights_cost_a_fifth_of_what_they_cost_by_size_alone(judge: Any) -> None:
    increases = {}
    for method, refit in (("magnitude", False), ("sparsegpt", True), ("swaps", True)):
        report = judge(stage_sparsify, stage_sparsify.Settings(density=0.5, method=method, refit=refit))
        increases[method] = report.perplexity.value - report.perplexity_reference.value
    assert increases["sparsegpt"] <= increases["magnitude"] / 5, increases
    assert increases["swaps"] <= increases["magnitude"] / 5, increases
