"""Makes a linear that writes to the residual stream give back what earlier, already changed parts have lost of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from subsecond.backends.batch import Int32
from subsecond.compress.gram_matrix import DAMPING, checked_gram, checked_weight, factor
from subsecond.compress.linear_inputs import input_and_loss, statistics_of, writes_stream
from subsecond.compress.plain_weights import as_half
from subsecond.compress.refit import output_error
from subsecond.compress.row_weights import row_weights
from subsecond.compress.segment_run import SegmentResult
from subsecond.compress.stage import Decision, StageJob
from subsecond.compress.statistics import Floats, InputStatistics
from subsecond.compress.walk import Visit, Walk
from subsecond.core.errors import InputError
from subsecond.graph.graph import Graph
from subsecond.graph.ops import Linear
from subsecond.models.compressed_parts import PLAIN_TYPES
from subsecond.models.weights import WeightSource


class OriginalStream:
    """The residual stream of the original model on the same windows, segment by segment, beside a walk that changes it.

    A run that goes on in the middle computes what was before anew. `places` are the numbers of the original's segments
    by those of a walk through a model that has fewer.
    """

    def __init__(self, graph: Graph, source: WeightSource, windows: Int32, places: Sequence[int] | None = None) -> None:
        self._walk = Walk(graph, source, windows)
        self._places = places
        self._visits: Iterator[Visit] = self._walk.visits()
        self._index = -1

    def after(self, index: int) -> Tensor:
        """The output of segment number `index` of the walk, float32 [rows, width]; numbers may only rise."""
        index = self._places[index] if self._places else index
        assert index >= self._index, "the stream has gone on"
        while self._index < index:
            visit = next(self._visits)
            visit.advance()
            self._index = visit.index
        return self._walk.live[self._walk.segments[index].outputs[0]]


def corrected_weight(
    weight: Floats, gram: Floats | None, cross: Floats, strength: float, damping: float = DAMPING
) -> Floats:
    """W + strength * E[d x^T] (G + lambda I)^-1 [out, in]: the linear's output also predicts a part of d from x.

    With strength 1 it is the least squares fit of W x + d. What is fitted to this weight afterwards, by `refit_columns`
    or within a mask, is fitted to that sum. Li et al. 2025 (GPTAQ), arXiv 2504.02692, do the same for rounding.
    """
    if cross.shape != weight.shape or not np.isfinite(cross).all() or not 0 <= strength <= 1:
        raise InputError(
            f"a correction of shape {cross.shape} and strength {strength} does not fit a weight of shape {weight.shape}"
        )
    W = checked_weight(weight)
    lower = factor(checked_gram(gram, W.shape[1]), damping)
    D = torch.from_numpy(cross.astype(np.float64))
    found: Floats = (W + strength * torch.cholesky_solve(D.T, lower).T).numpy().astype(np.float32)
    return found


def original_stream(job: StageJob, strength: float) -> OriginalStream | None:
    """The stream of the model that a stage is given; None where nothing is corrected."""
    if not strength:
        return None
    return OriginalStream(job.checkpoint.graph(), job.checkpoint.weights, job.calibration.windows)


def corrected_target(
    visit: Visit, weight: str, original: OriginalStream, strength: float, damping: float, rows: Tensor | None = None
) -> tuple[InputStatistics, Floats]:
    """Statistics of what a linear that writes to the stream reads, and its `corrected_weight` [out, in].

    `rows` float32 [rows] say how much each row counts; None for what `row_weights` says.
    """
    stream = original.after(visit.index)
    rows = row_weights(visit, stream) if rows is None else rows
    statistics, cross = input_and_loss(visit, weight, stream, rows)
    value: Floats = visit.weights[weight].numpy()
    if not cross.any():
        return statistics, value  # nothing is lost yet
    return statistics, corrected_weight(value, statistics.gram, cross, strength, damping)


def input_and_target(
    visit: Visit, weight: str, original: OriginalStream | None, strength: float, damping: float
) -> tuple[InputStatistics, Floats]:
    """Statistics of what a linear reads, with the Gram matrix, and the weight [out, in] that its fit aims at.

    That is the weight itself without an `original`, and where the linear has a bias or does not write to the stream.
    """
    bias = weight.removesuffix("weight") + "bias"
    if original is None or bias in visit.weights or not writes_stream(visit.segment, weight):
        return statistics_of(visit, weight), visit.weights[weight].numpy()
    return corrected_target(visit, weight, original, strength, damping)


def correct_writers(
    visit: Visit, original: OriginalStream, strength: float, damping: float, source: WeightSource
) -> SegmentResult:
    """Fit the linears of a segment that write to the residual stream so that they give back what it has lost.

    Those that `source` stores in blocks stay, since what is fitted takes half precision; the report names them. Those
    that write through a norm are not looked at.
    """
    tensors, decisions = {}, []
    for op in visit.segment.ops:
        if not isinstance(op, Linear) or len(op.weights) != 1 or op.weights[0] not in source.shapes:
            continue
        (name,) = op.weights
        if not writes_stream(visit.segment, name):
            continue
        if source.type_of(name) not in PLAIN_TYPES:
            why = f"{source.type_of(name).name} is smaller than the half precision of what is fitted"
            decisions.append(Decision(name, "left as it is", why))
            continue
        before = visit.weights[name].numpy()
        statistics, target = corrected_target(visit, name, original, strength, damping)
        if np.array_equal(target, before):
            continue
        tensors[name] = as_half(target)
        visit.weights[name] = torch.from_numpy(tensors[name].dequantize())
        figures = {"relative_change": float(np.sqrt(output_error(before, target, statistics.gram)))}
        why = "it gives back a part of what the residual stream has lost before it"
        decisions.append(Decision(name, "fitted", why, figures))
    return SegmentResult(tensors, tuple(decisions))
