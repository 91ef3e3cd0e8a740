"""The stage that makes feed-forward parts narrower, all layers alike, so that every engine loads the result."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from subsecond.compress import importance
from subsecond.compress.correction import OriginalStream, correct_writers, input_and_target, original_stream
from subsecond.compress.loss_gradients import WeightGradient, loss_gradients
from subsecond.compress.plain_weights import as_half, keep_rows, widened
from subsecond.compress.prune_width import FeedForward, keep_neurons
from subsecond.compress.segment_run import SegmentResult, as_stored, run_segments
from subsecond.compress.stage import Decision, StageJob, StageResult, in_parts
from subsecond.compress.statistics import Floats, InputStatistics
from subsecond.compress.walk import Visit, Walk
from subsecond.core.errors import UnsupportedError
from subsecond.core.settings import setting, validate
from subsecond.formats.whole_file import write_whole

METHODS = ("sensitivity", "activation", "fluctuation", "taylor")
_SCORES = "scores.json"
_FEED_FORWARD = re.compile(r"\.ffn_(gate|up|down)\.weight$")


@dataclass(frozen=True, slots=True)
class Settings:
    """Which neurons stay, and what happens to what reads them."""

    keep: float = setting(0.8, "part of the feed-forward width that stays", minimum=0.05, maximum=0.99)
    multiple: int = setting(64, "the new width is a multiple of this; 256 for super-blocks", minimum=32, maximum=1024)
    method: str = setting("sensitivity", "how neurons are ranked", choices=METHODS)
    refit: bool = setting(True, "fit the down projection to the neurons that stay")
    correction: float = setting(
        0.5, "part of what earlier parts have lost that writers of the stream give back", minimum=0.0, maximum=1.0
    )
    gradient_windows: int = setting(
        8, "calibration windows whose loss taylor follows back to the neurons", minimum=1, maximum=1024
    )
    damping: float = setting(0.01, "of the fit, of the mean square input", minimum=0.0, is_minimum_excluded=True)

    def __post_init__(self) -> None:
        validate(self)


def needs_calibration(settings: Settings) -> bool:  # noqa: ARG001
    """Whether the stage learns from text: always."""
    return True


def run(job: StageJob, settings: Settings) -> StageResult:
    """Write the narrower model; UnsupportedError for one with experts, InputError for a width that cannot be."""
    config = job.checkpoint.config
    if config.num_experts:
        raise UnsupportedError("feed-forward parts of models with experts are not made narrower; leave the stage out")
    width = importance.rounded_width(config.ff_width, settings.keep, settings.multiple)
    job.sink.config = replace(job.sink.config, ff_width=width)
    job.sink.readings.clear()
    scores = {}
    if settings.method == "taylor":
        scores = _taylor_scores(replace(job, progress=in_parts(job.progress, 0, 2)), settings)
        job = replace(job, progress=in_parts(job.progress, 1, 2))
    original = original_stream(job, settings.correction if settings.refit else 0.0)
    decisions = run_segments(job, partial(prune, job, settings, width, original, scores))
    return StageResult(tuple(decisions))


def prune(
    job: StageJob,
    settings: Settings,
    width: int,
    original: OriginalStream | None,
    scores: Mapping[str, importance.Scores],
    visit: Visit,
) -> SegmentResult:
    """Make the feed-forward part of a segment `width` neurons wide; others only give back what the stream has lost."""
    down = next((name for name in visit.segment.weights if name.endswith(".ffn_down.weight")), None)
    if down is None:
        if original is None:
            return SegmentResult({})
        return correct_writers(visit, original, settings.correction, settings.damping, job.checkpoint.weights)
    blk = down.removesuffix(".ffn_down.weight")
    names = {kind: f"{blk}.ffn_{kind}" for kind in ("gate", "up", "down")}
    statistics, target = input_and_target(visit, down, original, settings.correction, settings.damping)
    part = replace(_part(visit, names), down=target)
    kept = _choose(part, statistics, settings, width, scores.get(blk))
    cut, refit = keep_neurons(part, kept, statistics, has_refit=settings.refit, damping=settings.damping)
    stored = as_half(cut.down)
    tensors = {down: stored}
    for kind in ("gate", "up"):
        for suffix in ("weight", "bias"):
            name = f"{names[kind]}.{suffix}"
            if name in visit.weights:
                rows = _rows(kept, len(visit.weights[name]), part.num_neurons)
                tensors[name] = keep_rows(as_stored(job, name), rows)
    bias = f"{names['down']}.bias"
    if cut.down_bias is not None and bias in visit.weights:
        tensors[bias] = as_half(cut.down_bias)
        visit.weights[bias] = torch.from_numpy(cut.down_bias)
    visit.weights[down] = torch.from_numpy(widened(stored.dequantize(), kept, part.num_neurons))
    figures = {
        "relative_error": float(np.sqrt(refit.error if settings.refit else refit.error_cut)),
        "relative_error_without_fit": float(np.sqrt(refit.error_cut)),
    }
    why = f"the others have the least {settings.method} on the calibration text"
    what = f"{len(kept)} of {part.num_neurons} neurons stay" + (", down projection fitted" if settings.refit else "")
    return SegmentResult(tensors, (Decision(visit.segment.name, what, why, figures),))


def _choose(
    part: FeedForward,
    statistics: InputStatistics,
    settings: Settings,
    width: int,
    scores: importance.Scores | None,
) -> importance.Indices:
    if scores is not None:
        return importance.select_best(scores, width)
    if settings.method == "sensitivity":
        return importance.select_greedily(part.down, statistics.gram, width, damping=settings.damping)
    if settings.method == "activation":
        return importance.select_best(importance.activation_importance([statistics]), width)
    assert settings.method == "fluctuation", "the scores of taylor are given"
    return importance.select_best(importance.fluctuation_importance(part.down, statistics), width)


def _taylor_scores(job: StageJob, settings: Settings) -> dict[str, importance.Scores]:
    """Importance of the neurons of every layer by its name; that of a killed run is taken as it is."""
    if job.checkpoint.config.pooling is not None:
        raise UnsupportedError("the method taylor follows the loss of next tokens, and this model predicts none")
    place = job.folder / _SCORES
    if not place.is_file():
        walk = Walk(
            job.checkpoint.graph(), job.checkpoint.weights, job.calibration.windows[: settings.gradient_windows]
        )
        found = {}
        for gradients in loss_gradients(walk, lambda name: _FEED_FORWARD.search(name) is not None, job.progress):
            for name in gradients:
                if name.endswith(".ffn_down.weight"):
                    blk = name.removesuffix(".ffn_down.weight")
                    found[blk] = _taylor(gradients, name).tolist()
        write_whole(place, json.dumps(found).encode())
    return {blk: np.array(each) for blk, each in json.loads(place.read_text(encoding="utf-8")).items()}


def _taylor(gradients: Mapping[str, WeightGradient], down: str) -> importance.Scores:
    """Of the neurons that `down` reads, by all matrices of their part; gate and up may be one, with a half for each."""
    num_neurons = gradients[down].weight.shape[1]
    pairs = [(gradients[down].weight.T, gradients[down].gradient.T)]
    for name, each in gradients.items():
        if name != down:
            shape = (-1, num_neurons, each.weight.shape[1])
            pairs += zip(each.weight.reshape(shape), each.gradient.reshape(shape), strict=True)
    return importance.taylor_importance([weight for weight, _ in pairs], [gradient for _, gradient in pairs])


def _part(visit: Visit, names: dict[str, str]) -> FeedForward:
    """The part as matrices; gate and up of a fused one stay together, as nothing is computed with them here."""
    weights = {name: value.numpy() for name, value in visit.weights.items()}
    down = weights[f"{names['down']}.weight"]
    up, gate = weights[f"{names['up']}.weight"], weights.get(f"{names['gate']}.weight")
    up_bias: Floats | None = weights.get(f"{names['up']}.bias")
    num_neurons = down.shape[1]
    if len(up) == 2 * num_neurons:
        gate, up = up[:num_neurons], up[num_neurons:]
        up_bias = None
    return FeedForward(gate, up, down, up_bias=up_bias, down_bias=weights.get(f"{names['down']}.bias"))


def _rows(kept: importance.Indices, num_rows: int, num_neurons: int) -> importance.Indices:
    """Rows of a weight that stay, in both halves where gate and up are one matrix."""
    return kept if num_rows == num_neurons else np.concatenate((kept, kept + num_neurons))
