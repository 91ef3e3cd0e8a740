"""What each group of linears loses in each format: estimated from local errors, corrected where it was measured.

The estimate of a group is the power of the error that it adds to the residual stream, relative to the stream; the
measure is the mean KL divergence of the whole model when only that group is changed. Both are additive where errors are
small, so that a factor of the group's kind leads from one to the other.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from subsecond.backends.batch import Int32
from subsecond.compress.change_losses import change_losses
from subsecond.compress.gptq import GptqOptions, factorize
from subsecond.compress.layer_groups import LayerGroup, bits_of
from subsecond.compress.methods import NEAREST_TYPES, quantize
from subsecond.compress.output_error import output_power
from subsecond.compress.rounding import Floats
from subsecond.compress.row_weights import row_weights, weighted_statistics
from subsecond.compress.segment_quantizer import WIDEST
from subsecond.compress.stage import Progress, in_parts
from subsecond.compress.statistics import InputStatistics
from subsecond.compress.walk import Visit, Walk
from subsecond.core.errors import InputError
from subsecond.formats.gguf_types import TensorType
from subsecond.graph.graph import Graph
from subsecond.models.weights import WeightSource

READING_CODES = 127.0
INT4_CODES, INT4_GROUP = 7.5, 32
MULTIPLIER_SHARE = 1.06  # more error of int4 for multipliers that are integers, squared (2.6 to 4 % of the rms error)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Of one group in one format: relative error of its outputs, squared, and the same at the residual stream."""

    group: str
    format: str
    output_error: float
    stream_error: float


def reading_error(weight: Floats, statistics: InputStatistics, reading: str) -> float:
    """Expected power of the output error, summed over outputs, of a weight [out, in] in a channel format.

    Both formats rotate (decision 0009), after which weights and activations are nearly normal: of n such numbers the
    largest is about sqrt(2 ln n) standard deviations, a step is that over 127, and a rounding error has a variance of
    step^2 / 12. Of int4 the steps are those of groups of 32.
    """
    width = weight.shape[1]
    activation = 2.0 * math.log(width) / READING_CODES**2 / 12.0
    if reading == "int8":
        of_weights = activation
    elif reading == "int4":
        of_weights = MULTIPLIER_SHARE * 2.0 * math.log(INT4_GROUP) / INT4_CODES**2 / 12.0
    else:
        raise InputError(f"{reading!r} is no channel format; give int8 or int4")
    energy = float(np.square(weight, dtype=np.float64).sum())
    return (of_weights + activation) * energy * float(statistics.mean_square.astype(np.float64).mean())


def output_errors(
    weights: Sequence[Floats], changed: Sequence[Floats], statistics: InputStatistics
) -> tuple[float, float]:
    """Power of the error and of the outputs themselves of linears that share an input, summed over them."""
    noise = sum(output_power(new - old, statistics) for old, new in zip(weights, changed, strict=True))
    return noise, sum(output_power(weight, statistics) for weight in weights)


def groups_to_measure(
    groups: Sequence[LayerGroup],
    estimates: Mapping[tuple[str, str], Estimate],
    formats: Mapping[str, str],
    share: float,
) -> tuple[LayerGroup, ...]:
    """The `share` of the groups of every kind, at least one, in their order.

    formats  the smallest format of every group, by its name

    A third of them are estimated to lose most in that format; the others are spread over the layers, since how far an
    error at the stream leads from one layer to the next, and of those that lose most it says little for the rest.
    """
    if not 0 < share <= 1:
        raise InputError(f"share is {share}; it must lie above 0 and at most at 1")
    by_kind: dict[str, list[LayerGroup]] = defaultdict(list)
    for group in groups:
        by_kind[group.kind].append(group)
    chosen: set[str] = set()
    for alike in by_kind.values():
        count = math.ceil(share * len(alike))
        ranked = sorted(alike, key=lambda group: -estimates[group.name, formats[group.name]].stream_error)
        chosen |= {group.name for group in ranked[: count // 3]}
        others = [group for group in alike if group.name not in chosen]
        places = (
            np.linspace(0, len(others) - 1, count - count // 3).round().astype(int) if count > 1 else [len(others) // 2]
        )
        chosen |= {others[place].name for place in places}
    return tuple(group for group in groups if group.name in chosen)


def predicted_losses(
    groups: Sequence[LayerGroup],
    estimates: Mapping[tuple[str, str], Estimate],
    measured: Mapping[tuple[str, str], float],
) -> dict[tuple[str, str], float]:
    """Mean KL of every (group, format) of `estimates`.

    measured  mean KL of some of them; a group's other formats follow from its own factor, other groups' from the median
              factor of the three nearest layers of their kind, kinds without one from the median of all
    """
    factors: dict[str, list[float]] = defaultdict(list)
    by_name = {group.name: group for group in groups}
    for key, kl in sorted(measured.items()):
        stream_error = estimates[key].stream_error
        if stream_error > 0:
            factors[key[0]].append(max(kl, 0.0) / stream_error)
    own = {name: median(found) for name, found in factors.items()}
    overall = median(own.values()) if own else 1.0

    def factor_of(name: str) -> float:
        group = by_name[name]
        alike = [by_name[each] for each in own if by_name[each].kind == group.kind]
        nearest = sorted(alike, key=lambda each: (abs(each.segment - group.segment), each.segment))[:3]
        return median(own[each.name] for each in nearest) if nearest else overall

    found = {name: own[name] if name in own else factor_of(name) for name, _ in estimates}
    return {key: measured.get(key, found[key[0]] * each.stream_error) for key, each in estimates.items()}


@dataclass(frozen=True, slots=True)
class Losses:
    """Mean KL by (group, type name): `expected` of all, `measured` of those that were."""

    expected: Mapping[tuple[str, str], float]
    measured: Mapping[tuple[str, str], float]

    def to_json(self) -> dict[str, Any]:
        """Both as lists of [group, type, KL]."""
        parts = {"expected": self.expected, "measured": self.measured}
        return {name: [[*key, loss] for key, loss in part.items()] for name, part in parts.items()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Losses:
        """The losses that `to_json` gave."""
        return cls(
            *({(group, name): float(loss) for group, name, loss in content[part]} for part in ("expected", "measured"))
        )


def measure_losses(
    graph: Graph,
    source: WeightSource,
    windows: Int32,
    held_out: Int32,
    groups: Sequence[LayerGroup],
    options: Mapping[str, Sequence[TensorType]],
    share: float,
    progress: Progress,
    compensation: GptqOptions | None = None,
) -> Losses:
    """Losses of every group in every type of its `options`, with weights rounded by the scale search.

    windows       to learn scales from, and held_out to measure with, int32 [windows, tokens] each
    share         of the groups that are measured, each in its smallest type
    compensation  of GPTQ, if the weights are to be rounded by it: what is expected is then the part of each loss that
                  it leaves, which differs: inputs of attention are much alike, those of down projections are not
    """
    survey = _Survey(groups, options, compensation)
    estimating, measuring = (in_parts(progress, part, 2) for part in range(2))
    walk = Walk(graph, source, windows)
    for visit in walk.visits():
        estimating(f"estimating {visit.segment.name}", visit.index, len(walk.segments))
        survey.look_at(visit)
        visit.advance()
    smallest = {name: min(types, key=bits_of) for name, types in options.items()}
    chosen = groups_to_measure(groups, survey.estimates, {name: each.name for name, each in smallest.items()}, share)
    by_segment: dict[int, list[str]] = defaultdict(list)
    for group in chosen:
        by_segment[group.segment].append(group.name)

    def tell(name: str, done: int, count: int) -> None:
        measuring(f"measuring {name}", done, count)

    kls = change_losses(
        Walk(graph, source, held_out), by_segment, lambda visit, name: survey.changed(visit, name, smallest[name]), tell
    )
    measured = {(name, smallest[name].name): kl for name, kl in kls.items()}
    expected = predicted_losses(groups, survey.estimates, measured)
    return Losses({key: loss * survey.shares_left.get(key, 1.0) for key, loss in expected.items()}, measured)


class _Survey:
    """Estimates of all groups, and what is needed to round them again."""

    def __init__(
        self,
        groups: Sequence[LayerGroup],
        options: Mapping[str, Sequence[TensorType]],
        compensation: GptqOptions | None,
    ) -> None:
        self.estimates: dict[tuple[str, str], Estimate] = {}
        self.shares_left: dict[tuple[str, str], float] = {}  # of losses in types that GPTQ rounds to
        self._compensation = compensation
        self._groups = {group.name: group for group in groups}
        self._options = options
        self._statistics: dict[str, InputStatistics] = {}

    def look_at(self, visit: Visit) -> None:
        """Estimate the groups of a segment."""
        groups = [group for group in self._groups.values() if group.segment == visit.index]
        if not groups:
            return
        weights_of_rows = row_weights(visit)
        found = weighted_statistics(visit, {group.input for group in groups}, weights_of_rows, has_gram=True)
        rows, step = next(iter(visit.chunks()))
        with torch.no_grad():
            original = visit.outputs(rows, step)
        for group in groups:
            statistics = found[group.input]
            self._statistics[group.name] = replace(statistics, gram=None)
            weights = [visit.weights[name].numpy() for name in group.weights]
            types = sorted(self._options[group.name], key=bits_of)
            factor = factorize(statistics, self._compensation) if self._compensation and group.width <= WIDEST else None
            ratio = 0.0
            for index, tensor_type in enumerate(types):
                changed = self.changed(visit, group.name, tensor_type)
                noise, power = output_errors(weights, [changed[name].numpy() for name in group.weights], statistics)
                if index == 0:
                    with torch.no_grad():
                        outputs = visit.outputs(rows, step, {**visit.weights, **changed})
                    ratio = _stream_error(original, outputs) / noise if noise > 0 else 0.0
                key = group.name, tensor_type.name
                self.estimates[key] = Estimate(*key, noise / power if power > 0 else 0.0, ratio * noise)
                if factor is not None and tensor_type not in NEAREST_TYPES:
                    errors = [
                        changed[name].numpy() - weight for name, weight in zip(group.weights, weights, strict=True)
                    ]
                    self.shares_left[key] = factor.share_left(np.concatenate(errors))

    def changed(self, visit: Visit, name: str, tensor_type: TensorType) -> dict[str, Tensor]:
        """The weights of a group as they are in a type, by the scale search; float32."""
        statistics, group = self._statistics[name], self._groups[name]
        stacked = np.concatenate([visit.weights[each].numpy() for each in group.weights])
        values = torch.from_numpy(quantize(stacked, tensor_type, "search", statistics)[0].dequantize())
        parts = torch.split(values, [outputs for outputs, _ in group.shapes])
        return dict(zip(group.weights, parts, strict=True))


def _stream_error(original: Mapping[str, Tensor], changed: Mapping[str, Tensor]) -> float:
    """Mean over rows of the power of the difference over that of the row."""
    moved = torch.stack([(changed[name] - value).square().sum(dim=1) for name, value in original.items()]).sum(dim=0)
    power = torch.stack([value.square().sum(dim=1) for value in original.values()]).sum(dim=0)
    return float((moved / torch.clamp(power, min=torch.finfo(torch.float32).tiny)).mean(dtype=torch.float64))
