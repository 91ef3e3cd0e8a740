"""The stage that leaves out whole layers, those without which the model moves least, and fits what comes after them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from subsecond.compress.correction import OriginalStream, correct_writers
from subsecond.compress.layer_removal import LayerRemoval
from subsecond.compress.prune_depth import Removal, choose_layers, layer_of, renumbered, without_layers
from subsecond.compress.segment_run import SegmentResult, run_segments
from subsecond.compress.stage import Decision, Rejection, StageJob, StageResult, in_parts
from subsecond.compress.walk import Visit
from subsecond.core.errors import InputError
from subsecond.core.settings import setting, validate
from subsecond.formats.whole_file import write_whole
from subsecond.graph.segments import segments
from subsecond.models.families.registry import build_graph
from subsecond.models.weights import RenamedWeights, WeightSource, stored_tensor

_CHOICE = "choice.json"
_NOTHING_FITTED = Decision(
    "model", "nothing is fitted", "nothing was lost, or all linears behind write to the residual stream through norms"
)


@dataclass(frozen=True, slots=True)
class Settings:
    """How many layers leave, and how they are chosen."""

    keep: float = setting(0.9, "part of the layers that stays", minimum=0.05, maximum=0.99)
    candidates: int = setting(
        8, "layers of least influence whose divergence is measured before one leaves", minimum=1, maximum=1024
    )
    windows: int = setting(8, "calibration windows that divergence is measured on", minimum=1, maximum=1024)
    refit: bool = setting(True, "fit what writes to the residual stream after a removed layer to make up for it")
    correction: float = setting(
        0.5, "part of what the stream has lost that the fitted linears give back", minimum=0.0, maximum=1.0
    )
    damping: float = setting(0.01, "of the fit, of the mean square input", minimum=0.0, is_minimum_excluded=True)

    def __post_init__(self) -> None:
        validate(self)


def needs_calibration(settings: Settings) -> bool:  # noqa: ARG001
    """Whether the stage learns from text: always."""
    return True


def run(job: StageJob, settings: Settings) -> StageResult:
    """Write the model with fewer layers; weights that are not fitted stay as they were stored.

    Raises:
        InputError: rounding leaves all layers, or more would have to go than are not protected.
        UnsupportedError: layers of the model are joined by more than one value.
    """
    checkpoint, graph = job.checkpoint, job.checkpoint.graph()
    num_layers = checkpoint.config.num_layers
    num_removed = int((1 - settings.keep) * num_layers + 0.5)
    if not num_removed:
        raise InputError(
            f"{settings.keep:.0%} of {num_layers} layers, rounded, is all of them; keep less, or leave the stage out"
        )
    removal = LayerRemoval(graph, checkpoint.weights, job.calibration.windows[: settings.windows])
    parts = [in_parts(job.progress, part, num_removed + 2) for part in range(num_removed + 2)]
    influence = removal.influence(num_layers, lambda done, count: parts[0]("influence", done, count)).tolist()
    known = _read(job)

    def measure(removed: tuple[int, ...], candidates: tuple[int, ...]) -> Sequence[float]:
        key = f"{removed} {candidates}"
        if key not in known:
            number = len(removed) + 1
            what = f"without layer {number} of {num_removed}"
            known[key] = removal.kl_without(removed, candidates, lambda done, count: parts[number](what, done, count))
            write_whole(job.folder / _CHOICE, json.dumps(known).encode())
        return known[key]

    removals = choose_layers(num_layers, num_removed, measure, prior=influence, num_candidates=settings.candidates)
    gone = sorted(each.layer for each in removals)
    job.sink.config = without_layers(job.sink.config, gone)
    readings = {place: way for name, way in job.sink.readings.items() if (place := renumbered(name, gone))}
    job.sink.readings.clear()
    job.sink.readings.update(readings)
    names = {place: name for name in graph.weights if (place := renumbered(name, gone))}
    weights = RenamedWeights(checkpoint.weights, names)
    if settings.refit and settings.correction:
        job = replace(job, progress=parts[-1])
        return _result(removals, influence, _refit(job, settings, weights, gone) or [_NOTHING_FITTED])
    for index, name in enumerate(weights.shapes):
        parts[-1]("writing", index, len(names))
        job.sink.put(name, stored_tensor(weights, name))
        weights.release()
    parts[-1]("writing", 1, 1)
    return _result(removals, influence, [])


def _refit(job: StageJob, settings: Settings, weights: WeightSource, gone: Sequence[int]) -> list[Decision]:
    """Write the model without the layers `gone`, the linears behind them fitted to the stream of the whole model."""
    whole, graph = job.checkpoint.graph(), build_graph(job.sink.config, weights.shapes)
    parts = [segment for segment in segments(whole) if layer_of(segment.name) not in gone]
    numbers = {segment.name: number for number, segment in enumerate(segments(whole))}
    places = [numbers[segment.name] for segment in parts]
    original = OriginalStream(whole, job.checkpoint.weights, job.calibration.windows, places)

    def work(visit: Visit) -> SegmentResult:
        if places[visit.index] == visit.index:
            return SegmentResult({})  # nothing is lost yet
        return correct_writers(visit, original, settings.correction, settings.damping, weights)

    return run_segments(job, work, graph, weights)


def _read(job: StageJob) -> dict[str, list[float]]:
    """What a run that was ended has measured."""
    place = job.folder / _CHOICE
    found: dict[str, list[float]] = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {}
    return found


def _result(removals: Sequence[Removal], influence: Sequence[float], fitted: Sequence[Decision]) -> StageResult:
    decisions = [
        Decision(
            f"blk.{each.layer}",
            "removed",
            f"least divergence of {len(each.tried)} candidates",
            {"kl_to_the_original": each.kl, "influence": influence[each.layer]},
        )
        for each in removals
    ]
    last = removals[-1]
    rejections = [
        Rejection(
            f"remove layer {layer}", f"as the last of {len(removals)} it would leave KL {kl:.4f}, not {last.kl:.4f}"
        )
        for layer, kl in last.tried
        if layer != last.layer
    ]
    return StageResult((*decisions, *fitted), tuple(rejections))
