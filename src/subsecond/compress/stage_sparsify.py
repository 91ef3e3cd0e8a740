"""The stage that sets single weights of the linears of layers to zero, by one of several methods."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from subsecond.compress import masks
from subsecond.compress.advice import advise
from subsecond.compress.correction import OriginalStream, input_and_target, original_stream
from subsecond.compress.kernel_times import time_sparse
from subsecond.compress.layer_ratios import layer_densities, outlier_part
from subsecond.compress.linear_inputs import statistics_of, writes_stream
from subsecond.compress.mask_swaps import swap_masks
from subsecond.compress.masked_refit import masked_refit
from subsecond.compress.plain_weights import as_half
from subsecond.compress.prune_depth import layer_of
from subsecond.compress.refit import output_error
from subsecond.compress.segment_run import SegmentResult, run_segments
from subsecond.compress.sparsegpt import sparsegpt
from subsecond.compress.stage import Decision, StageJob, StageResult
from subsecond.compress.statistics import Floats, InputStatistics
from subsecond.compress.walk import Visit, Walk
from subsecond.core.errors import InputError
from subsecond.core.settings import setting, validate
from subsecond.formats.whole_file import write_whole
from subsecond.graph.ops import Linear
from subsecond.graph.segments import Segment

METHODS = ("swaps", "sparsegpt", "wanda", "magnitude")
ADVICE_DENSITIES = (0.1, 0.2, 0.3, 0.9)  # two lists and two bitmaps, see backends/native/sparse_weights.py
ADVICE_FORMATS = {"int8": "Q8_0", "int4": "Q4_0"}
BLOCK_INPUTS = 32
_OUTLIERS = "outliers.json"


@dataclass(frozen=True, slots=True)
class Settings:
    """Which weights stay, and what happens to them. `swaps` is Wanda's choice, refined by exchanges."""

    density: float = setting(0.5, "part of the weights that stays", minimum=0.01, maximum=0.99)
    method: str = setting("swaps", "how weights are chosen", choices=METHODS)
    ratios: str = setting(
        "uniform", "how layers share the density: all alike, or by outliers", choices=("uniform", "owl")
    )
    pattern: str = setting(
        "none", "2:4 for graphics processors, which have instructions for it", choices=("none", "2:4")
    )
    refit: bool = setting(True, "fit the weights that stay by least squares")
    correction: float = setting(
        0.5, "part of what earlier parts have lost that the fit gives back", minimum=0.0, maximum=1.0
    )
    damping: float = setting(0.01, "of the fit, of the mean square input", minimum=0.0, is_minimum_excluded=True)

    def __post_init__(self) -> None:
        validate(self)
        if self.pattern != "none" and (self.density != 0.5 or self.ratios != "uniform" or self.method == "swaps"):
            raise InputError(
                "the pattern 2:4 has density 0.5 in every layer, and is made by sparsegpt, wanda or magnitude"
            )


def _advice(job: StageJob, settings: Settings) -> list[str]:
    """What the density is worth in decoding, by the linears of one layer as they run on this machine."""
    shapes = job.checkpoint.graph().weights
    layer = [(shape[0], shape[1]) for name, shape in shapes.items() if len(shape) == 2 and layer_of(name) == 0]
    if any(width % BLOCK_INPUTS for _, width in layer):  # no blocks to compare with
        return advise(settings.density).sentences()
    densities = sorted({*ADVICE_DENSITIES, settings.density})
    sparse, others = time_sparse(layer, densities, ADVICE_FORMATS)
    return advise(settings.density, sparse_seconds=sparse, other_seconds=others).sentences()


def needs_calibration(settings: Settings) -> bool:
    """Whether the stage learns from text: by magnitude alone it does not."""
    return settings.method != "magnitude" or settings.ratios == "owl" or settings.refit


def run(job: StageJob, settings: Settings) -> StageResult:
    """Write the sparse model, half precision with the reading "sparse"."""
    densities = _layer_densities(job, settings)
    job.sink.readings.clear()
    if settings.pattern == "none":
        job.sink.readings["default"] = "sparse"
    original = original_stream(job, settings.correction if settings.refit else 0.0)
    decisions = run_segments(job, partial(sparsify, settings, densities, original))
    if settings.pattern == "none":
        decisions += [
            Decision("model", sentence, "times of kernels for one row") for sentence in _advice(job, settings)
        ]
    return StageResult(tuple(decisions))


def sparsify(
    settings: Settings, densities: Mapping[int, float], original: OriginalStream | None, visit: Visit
) -> SegmentResult:
    """Set weights of a layer's segment to zero, linear by linear; other segments stay as they are."""
    layer = layer_of(visit.segment.name)
    if layer is None:
        return SegmentResult({})
    has_gram = settings.refit or settings.method in ("swaps", "sparsegpt")
    statistics: dict[str, InputStatistics] = {}
    tensors, decisions = {}, []
    for name, value in matrices_of(visit.segment).items():
        weight, seen = visit.weights[name].numpy(), statistics.get(value)
        if has_gram and original is not None and writes_stream(visit.segment, name):
            seen, weight = input_and_target(visit, name, original, settings.correction, settings.damping)
        elif seen is None and needs_calibration(settings):
            seen = statistics[value] = statistics_of(visit, name, has_gram=has_gram)
        changed = sparse_weight(weight, seen, settings, densities[layer])
        tensors[name] = as_half(changed)
        stored = tensors[name].dequantize()
        visit.weights[name] = torch.from_numpy(stored)
        figures = {"density": masks.density_of(stored)}
        if seen is not None and seen.gram is not None:
            figures["relative_error"] = float(np.sqrt(output_error(weight, stored, seen.gram)))
        fitted = " and fitted" if settings.refit else ""
        why = f"{settings.method} on the calibration text" if seen is not None else "size alone"
        decisions.append(Decision(name, f"{figures['density']:.1%} of the weights stay{fitted}", why, figures))
    return SegmentResult(tensors, tuple(decisions))


def matrices_of(segment: Segment) -> dict[str, str]:
    """The value that each linear of a segment reads, by the name of its weight; routers of experts are left out."""
    return {
        name: op.input
        for op in segment.ops
        if isinstance(op, Linear)
        for name in op.weights
        if not name.endswith("ffn_gate_inp.weight")
    }


def sparse_weight(weight: Floats, statistics: InputStatistics | None, settings: Settings, density: float) -> Floats:
    """A weight [out, in] with a part `density` of it left, by the method of the settings."""
    pattern = (2, 4) if settings.pattern == "2:4" else None
    gram = None if statistics is None else statistics.gram
    if settings.method == "sparsegpt":
        changed = sparsegpt(weight, gram, density, pattern=pattern, damping=settings.damping)
        mask = changed != 0
    else:
        if settings.method == "magnitude":
            scores = masks.magnitude_scores(weight)
        else:
            assert statistics is not None, "scores of Wanda need statistics"
            scores = masks.wanda_scores(weight, statistics)
        mask = masks.keep_in_groups(scores, *pattern) if pattern else masks.keep_largest(scores, density)
        if settings.method == "swaps":
            mask = swap_masks(weight, mask, gram)
        changed = weight * mask
    return masked_refit(weight, mask, gram, damping=settings.damping) if settings.refit else changed


def _layer_densities(job: StageJob, settings: Settings) -> Mapping[int, float]:
    num_layers = job.checkpoint.config.num_layers
    if settings.ratios == "uniform":
        return dict.fromkeys(range(num_layers), settings.density)
    place = job.folder / _OUTLIERS
    if not place.is_file():
        write_whole(place, json.dumps(_outliers(job)).encode())
    parts, sizes = json.loads(place.read_text(encoding="utf-8"))
    return dict(enumerate(layer_densities(parts, sizes, settings.density).tolist()))


def _outliers(job: StageJob) -> tuple[list[float], list[int]]:
    """Part of outliers and number of weights of each layer of the model as it is."""
    walk = Walk(job.checkpoint.graph(), job.checkpoint.weights, job.calibration.windows)
    scores: dict[int, list[Floats]] = {}
    parts, sizes = [], []
    for visit in walk.visits():
        job.progress("looking for outliers", visit.index, len(walk.segments))
        layer = layer_of(visit.segment.name)
        if layer is not None:
            statistics = visit.statistics(has_gram=False)
            for name, value in matrices_of(visit.segment).items():
                weight = visit.weights[name].numpy()
                scores.setdefault(layer, []).append(masks.wanda_scores(weight, statistics[value]))
        visit.advance()
        following = walk.segments[visit.index + 1 : visit.index + 2]
        for done in [each for each in scores if not following or layer_of(following[0].name) != each]:
            layer_scores = scores.pop(done)
            parts.append(outlier_part(layer_scores))
            sizes.append(sum(each.size for each in layer_scores))
    return parts, sizes
