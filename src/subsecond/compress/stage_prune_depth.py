"""The stage that leaves out whole layers, those without which the model moves least, as measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from subsecond.compress.layer_removal import LayerRemoval
from subsecond.compress.prune_depth import Removal, choose_layers, renumbered, without_layers
from subsecond.compress.segment_run import as_stored
from subsecond.compress.stage import Decision, Rejection, StageJob, StageResult
from subsecond.core.errors import InputError
from subsecond.core.settings import setting, validate
from subsecond.formats.whole_file import write_whole

_CHOICE = "choice.json"


@dataclass(frozen=True, slots=True)
class Settings:
    """How many layers leave, and how they are chosen."""

    keep: float = setting(0.9, "part of the layers that stays", minimum=0.05, maximum=0.99)
    candidates: int = setting(
        8, "layers of least influence whose divergence is measured before one leaves", minimum=1, maximum=1024
    )
    windows: int = setting(8, "calibration windows that divergence is measured on", minimum=1, maximum=1024)

    def __post_init__(self) -> None:
        validate(self)


def needs_calibration(settings: Settings) -> bool:  # noqa: ARG001
    """Whether the stage learns from text: always."""
    return True


def run(job: StageJob, settings: Settings) -> StageResult:
    """Write the model with fewer layers, all weights as they were stored.

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
    influence = removal.influence(num_layers, lambda done, count: job.progress("influence", done, count)).tolist()
    known = _read(job)

    def measure(removed: tuple[int, ...], candidates: tuple[int, ...]) -> Sequence[float]:
        key = f"{removed} {candidates}"
        if key not in known:
            what = f"without layer {len(removed) + 1} of {num_removed}"
            known[key] = removal.kl_without(removed, candidates, lambda done, count: job.progress(what, done, count))
            write_whole(job.folder / _CHOICE, json.dumps(known).encode())
        return known[key]

    removals = choose_layers(num_layers, num_removed, measure, prior=influence, num_candidates=settings.candidates)
    gone = sorted(each.layer for each in removals)
    job.sink.config = without_layers(job.sink.config, gone)
    readings = {place: way for name, way in job.sink.readings.items() if (place := renumbered(name, gone))}
    job.sink.readings.clear()
    job.sink.readings.update(readings)
    for index, name in enumerate(graph.weights):
        job.progress("writing", index, len(graph.weights))
        place = renumbered(name, gone)
        if place is not None:
            job.sink.put(place, as_stored(job, name))
            checkpoint.weights.release()
    return _result(removals, influence)


def _read(job: StageJob) -> dict[str, list[float]]:
    """What a run that was ended has measured."""
    place = job.folder / _CHOICE
    found: dict[str, list[float]] = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {}
    return found


def _result(removals: Sequence[Removal], influence: Sequence[float]) -> StageResult:
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
    return StageResult(tuple(decisions), tuple(rejections))
