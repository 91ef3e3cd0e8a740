"""Gives every group of linears the type that costs least quality within a budget of bits or of measured time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from subsecond.compress.gptq import GptqOptions
from subsecond.compress.kernel_times import Kernel, time_kernels
from subsecond.compress.knapsack import Option, choose
from subsecond.compress.layer_groups import LayerGroup, bits_of, layer_groups
from subsecond.compress.segment_quantizer import CORRECTION, DAMPING, PORTABLE_BITS, SegmentQuantizer
from subsecond.compress.segment_run import SegmentResult, run_segments
from subsecond.compress.sensitivity import Losses, measure_losses
from subsecond.compress.stage import Decision, Rejection, StageJob, StageResult, in_parts
from subsecond.compress.walk import Visit
from subsecond.core.errors import InputError
from subsecond.core.settings import setting, validate
from subsecond.formats.gguf_types import BLOCK_LAYOUTS, TensorType
from subsecond.formats.whole_file import write_whole

PORTABLE = ("Q4_0", "Q5_0", "Q8_0", "F16")
WITH_SUPER_BLOCKS = ("Q4_K", "Q4_0", "Q5_K", "Q5_0", "Q6_K", "Q8_0", "F16")
PREFILL_ROWS = 128
_LOSSES, _TIMES = "losses.json", "times.json"


@dataclass(frozen=True, slots=True)
class Settings:
    """What may be chosen from, and within which budget."""

    budget: str = setting(
        "bits",
        "bits: stored bits of a weight; decode, prefill: measured time of the linears on this machine",
        choices=("bits", "decode", "prefill"),
    )
    bits: float = setting(4.75, "bits of a weight of the layers, scales counted", minimum=2, maximum=32)
    time_of: str = setting("Q5_0", "the time budget is that of this type in every layer", choices=WITH_SUPER_BLOCKS)
    time_share: float = setting(1.0, "of that time", minimum=0.1, maximum=10)
    types: tuple[str, ...] = setting(PORTABLE, "what a group may become; F16 is always allowed where nothing else fits")
    measured_share: float = setting(
        0.25,
        "of the groups of every kind are measured",
        minimum=0,
        maximum=1,
        is_minimum_excluded=True,
    )
    measured_windows: int = setting(4, "of the held-out windows, those to measure with", minimum=1, maximum=1000)
    head_bits: str = setting("8", "bits of the output head", choices=PORTABLE_BITS)
    table_bits: str = setting(
        "8", "bits of the embedding table; a tied head has the more of both", choices=PORTABLE_BITS
    )
    method: str = setting("gptq", "how weights are rounded", choices=("gptq", "search", "autoround"))
    sweeps: int = setting(2, "rounds of coordinate descent after gptq", minimum=0, maximum=20)
    correction: float = setting(
        CORRECTION,
        "share of what the residual stream has lost before that attn_output and ffn_down give back, with gptq",
        minimum=0,
        maximum=1,
    )
    steps: int = setting(200, "steps of learned rounding (autoround) of each segment", minimum=10, maximum=10_000)
    seed: int = setting(0, "of learned rounding", minimum=0, maximum=2**32)

    def __post_init__(self) -> None:
        validate(self)
        unknown = [name for name in self.types if name not in WITH_SUPER_BLOCKS]
        if unknown or not self.types:
            raise InputError(
                f"types {', '.join(unknown) or '()'} are not allowed; give some of {', '.join(WITH_SUPER_BLOCKS)}"
            )


@dataclass(frozen=True, slots=True)
class Choice:
    """What every group became, by its name, with the loss and the cost that were expected, and the budget."""

    types: Mapping[str, TensorType]
    loss: float
    cost: float
    budget: float


def run(job: StageJob, settings: Settings) -> StageResult:
    """Estimate, measure, choose, and round every group to its type."""
    graph = job.checkpoint.graph()
    groups = layer_groups(graph)
    options = {group.name: types_of(group, settings.types) for group in groups}
    losses = _losses(job, groups, options, settings)
    costs = _costs(job, groups, options, settings)
    choice = choose_types(groups, options, losses.expected, costs, _budget(groups, costs, settings))
    types = {name: choice.types[group.name] for group in groups for name in group.weights}
    quantizer = SegmentQuantizer.of_stage(job, settings)

    def work(visit: Visit) -> SegmentResult:
        missing = {name: TensorType.F16 for name in visit.segment.matrices if name not in types}
        tables = quantizer.tables(visit, int(settings.head_bits), int(settings.table_bits))
        return quantizer.round(visit, {**types, **missing}, tables)

    decisions = run_segments(replace(job, progress=in_parts(job.progress, 1, 2)), work, graph)
    job.sink.readings.clear()
    unit = "bits a weight" if settings.budget == "bits" else "s of linears a step"
    why = (
        f"expected mean KL {choice.loss:.4g} at {choice.cost:.4g} {unit}, within {choice.budget:.4g}; "
        f"{len(losses.measured)} of {len(groups)} groups were measured"
    )
    summary = Decision("model", _counts(choice.types), why, {"expected_kl": choice.loss, "cost": choice.cost})
    return StageResult((summary, *decisions), _rejections(groups, options, losses.expected, costs, choice, unit))


def types_of(group: LayerGroup, names: Sequence[str]) -> tuple[TensorType, ...]:
    """The types of `names` that hold weights of the group's width; F16 where none does."""
    found = [TensorType[name] for name in names]
    fitting = tuple(each for each in found if group.width % BLOCK_LAYOUTS[each].num_elements == 0)
    return fitting or (TensorType.F16,)


def choose_types(
    groups: Sequence[LayerGroup],
    options: Mapping[str, Sequence[TensorType]],
    losses: Mapping[tuple[str, str], float],
    costs: Mapping[tuple[str, str], float],
    budget: float,
) -> Choice:
    """The knapsack over groups; `losses` and `costs` by (group, type name), costs add up to what `budget` bounds."""
    table = [
        [Option(costs[group.name, each.name], losses[group.name, each.name]) for each in options[group.name]]
        for group in groups
    ]
    picked = choose(table, budget)
    types = {group.name: options[group.name][index] for group, index in zip(groups, picked, strict=True)}
    chosen = [row[index] for row, index in zip(table, picked, strict=True)]
    return Choice(types, sum(each.loss for each in chosen), sum(each.cost for each in chosen), budget)


def _losses(
    job: StageJob, groups: Sequence[LayerGroup], options: Mapping[str, Sequence[TensorType]], settings: Settings
) -> Losses:
    """Losses of every group and type; those of a killed run are taken as they are."""
    kept = job.folder / _LOSSES
    if kept.is_file():
        return Losses.from_json(json.loads(kept.read_text(encoding="utf-8")))
    held_out = job.calibration.held_out[: settings.measured_windows]
    losses = measure_losses(
        job.checkpoint.graph(),
        job.checkpoint.weights,
        job.calibration.windows,
        held_out,
        groups,
        options,
        settings.measured_share,
        in_parts(job.progress, 0, 2),
        GptqOptions(DAMPING) if settings.method == "gptq" else None,
    )
    write_whole(kept, json.dumps(losses.to_json(), allow_nan=False).encode())
    return losses


def _costs(
    job: StageJob, groups: Sequence[LayerGroup], options: Mapping[str, Sequence[TensorType]], settings: Settings
) -> dict[tuple[str, str], float]:
    """Of every group and type: its part of the mean bits of a weight, or seconds; those of a killed run where timed."""
    if settings.budget == "bits":
        total = sum(group.num_weights for group in groups)
        return {
            (group.name, each.name): bits_of(each) * group.num_weights / total
            for group in groups
            for each in options[group.name]
        }
    kept = job.folder / _TIMES
    if kept.is_file():
        return {(group, name): time_s for group, name, time_s in json.loads(kept.read_text(encoding="utf-8"))}
    num_rows = 1 if settings.budget == "decode" else PREFILL_ROWS
    working_bytes = round(sum(group.num_weights for group in groups) * 0.6)
    names = {each.name for types in options.values() for each in types} | {settings.time_of}
    kernels = {
        (group.name, name): Kernel(name, group.num_outputs, group.width)
        for group in groups
        for name in names
        if group.width % BLOCK_LAYOUTS[TensorType[name]].num_elements == 0
    }
    times = time_kernels(kernels.values(), (num_rows,), working_bytes=working_bytes)[num_rows]
    found = {key: times[kernel] for key, kernel in kernels.items()}
    write_whole(kept, json.dumps([[*key, time_s] for key, time_s in found.items()]).encode())
    return found


def _budget(groups: Sequence[LayerGroup], costs: Mapping[tuple[str, str], float], settings: Settings) -> float:
    if settings.budget == "bits":
        return settings.bits
    missing = [group.name for group in groups if (group.name, settings.time_of) not in costs]
    if missing:
        raise InputError(
            f"{missing[0]} cannot be {settings.time_of}, by whose time the budget is set; set time_of to another type"
        )
    return settings.time_share * sum(costs[group.name, settings.time_of] for group in groups)


def _counts(types: Mapping[str, TensorType]) -> str:
    counts: dict[str, int] = {}
    for each in types.values():
        counts[each.name] = counts.get(each.name, 0) + 1
    return ", ".join(f"{count} groups {name}" for name, count in sorted(counts.items()))


def _rejections(
    groups: Sequence[LayerGroup],
    options: Mapping[str, Sequence[TensorType]],
    losses: Mapping[tuple[str, str], float],
    costs: Mapping[tuple[str, str], float],
    choice: Choice,
    unit: str,
) -> tuple[Rejection, ...]:
    """Every uniform choice, with what it was expected to lose and to cost."""
    names = dict.fromkeys(each.name for types in options.values() for each in types)
    found = []
    for name in names:
        if not all((group.name, name) in costs and (group.name, name) in losses for group in groups):
            continue
        loss = sum(losses[group.name, name] for group in groups)
        cost = sum(costs[group.name, name] for group in groups)
        reason = "over the budget" if cost > choice.budget else "loses more"
        found.append(Rejection(f"{name} in every layer", f"{reason}: expected KL {loss:.4g} at {cost:.4g} {unit}"))
    return tuple(found)
