"""What a recipe will take before it is begun: time, memory and disk, from counts of the model and a measured rate."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from subsecond.compress.change_losses import LOGIT_ROWS
from subsecond.compress.predicted_size import predicted_bytes
from subsecond.compress.recipe import Recipe, Stage
from subsecond.compress.segment_quantizer import CORRECTED
from subsecond.compress.walk import CHUNK_ROWS
from subsecond.core.errors import ResourceError
from subsecond.core.hardware import probe
from subsecond.graph.graph import Graph
from subsecond.graph.ops import Attention
from subsecond.graph.segments import Segment, segments
from subsecond.models.checkpoint import Checkpoint

_RATE_SIZE = 1024
_RATE_REPEATS = 4
_PROGRAM_BYTES = 600 * 10**6  # the interpreter, torch and its threads
EVAL_WINDOW_TOKENS = 256
_HELD_LOGITS = 10  # arrays of the size of a window's logits that comparing two models holds
_SEARCH_OPERATIONS = 10_000  # large products do as many while the scale of one weight is searched
_SOLVER_SHARE = 0.25  # of the rate of large products that factorizations and column updates reach
CALIBRATION, QUALITY, SPEED, PACKING = "calibration text", "quality", "speed", "packing"


@dataclass(frozen=True, slots=True)
class StagePlan:
    """Predicted work of one stage: products of linears, Gram matrices and solvers in floating-point operations."""

    kind: str
    seconds: float
    operations: float
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What all of a recipe will take, and what it will make.

    phases        predicted seconds by name, in order
    model_bytes   of the weights as they are, result_bytes as they are expected to be: decoding reads them all for each
                  token, so their quotient is the speed-up of decoding where memory bounds it
    """

    operations_per_s: float
    phases: Mapping[str, float]
    stages: tuple[StagePlan, ...]
    peak_bytes: int
    disk_bytes: int
    model_bytes: int
    result_bytes: int

    @property
    def seconds(self) -> float:
        """Seconds of all phases."""
        return sum(self.phases.values())

    def to_json(self) -> dict[str, Any]:
        """The fields by name, as JSON holds them."""
        return {**asdict(self), "phases": dict(self.phases), "seconds": self.seconds}


def make_plan(
    checkpoint: Checkpoint, recipe: Recipe, num_quality_tokens: int, *, has_text: bool, rate: float | None = None
) -> Plan:
    """The plan of a recipe for a checkpoint; `rate` in operations a second is measured where not given."""
    rate = rate or measured_rate()
    graph = checkpoint.graph()
    parts = segments(graph)
    num_tokens = recipe.calibration.windows * recipe.calibration.window_tokens
    forward = sum(2.0 * _elements(graph, each) for each in parts) + 2.0 * _head_elements(graph)
    stages = tuple(_stage_plan(stage, graph, parts, recipe, rate) for stage in recipe.stages)
    writes = 0.0 if has_text else recipe.calibration.num_all * recipe.calibration.window_tokens * forward / rate
    names = [f"{index + 1}. {stage.kind}" for index, stage in enumerate(recipe.stages)]
    weight_bytes = 4 * sum(math.prod(shape) for shape in graph.weights.values())
    phases = {
        CALIBRATION: writes,
        **dict(zip(names, (each.seconds for each in stages), strict=True)),
        PACKING: weight_bytes / 4 / 1e8,
        QUALITY: 2 * num_quality_tokens * forward / rate,
        SPEED: (12 if num_quality_tokens else 0) * (256 * forward / rate + 32 * weight_bytes / 4 / 1e10),
    }
    logits_bytes = _HELD_LOGITS * 4 * min(num_quality_tokens, EVAL_WINDOW_TOKENS) * graph.values[graph.output].width
    comparison = weight_bytes * 5 // 4 + logits_bytes + _PROGRAM_BYTES  # the original in fp32, and the result
    peak = max(*(each.peak_bytes for each in stages), comparison if num_quality_tokens else 0)
    disk = weight_bytes // 2 * (len(stages) + 1) + 4 * num_tokens * _stream_width(graph) * 2
    model_bytes = sum(_stored_bytes(checkpoint, name) for name in graph.weights)
    return Plan(rate, phases, stages, peak, disk, model_bytes, predicted_bytes(graph, recipe))


def measured_rate() -> float:
    """Floating-point operations a second of large fp32 products by torch on this machine."""
    a, b = torch.ones((_RATE_SIZE, _RATE_SIZE)), torch.ones((_RATE_SIZE, _RATE_SIZE))
    best = math.inf
    for _ in range(_RATE_REPEATS):
        start_s = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - start_s)
    return 2.0 * _RATE_SIZE**3 / best


def check_resources(plan: Plan, folder: Path) -> None:
    """ResourceError when the plan needs more memory or disk than there is."""
    available_bytes = probe().available_bytes
    if plan.peak_bytes > available_bytes:
        raise ResourceError(
            f"the plan needs {plan.peak_bytes / 1e9:.1f} GB of memory; {available_bytes / 1e9:.1f} GB are available. "
            "Close other programs, learn from fewer windows, or skip the check of quality (--eval-windows 0)"
        )
    folder = next(each for each in (folder, *folder.parents) if each.exists())
    free_bytes = shutil.disk_usage(folder).free
    if plan.disk_bytes > free_bytes:
        raise ResourceError(
            f"the plan needs {plan.disk_bytes / 1e9:.1f} GB of disk at {folder}; {free_bytes / 1e9:.1f} GB are free. "
            "Give an --out on another disk, or make room"
        )


@dataclass(frozen=True, slots=True)
class _Way:
    """How a stage goes through a model.

    passes      times that calibration runs through each segment; num_states of the residual stream are held meanwhile
    has_gram    Gram matrices are summed up, and with has_solver factorized
    is_kept     what linears of a segment read is held between its runs
    searches    times that scales of weights are searched; `rounds` of updates of all columns are made
    widest      inputs up to which there is a Gram matrix
    """

    passes: float
    num_states: int
    has_gram: bool = False
    has_solver: bool = False
    is_kept: bool = False
    searches: float = 0
    rounds: float = 1.0
    widest: float = math.inf


def _stage_plan(stage: Stage, graph: Graph, parts: tuple[Segment, ...], recipe: Recipe, rate: float) -> StagePlan:
    settings, calibration = stage.settings, recipe.calibration
    all_tokens = calibration.windows * calibration.window_tokens if stage.needs_calibration else 1
    if stage.kind == "prune-depth":
        num_tokens = min(calibration.windows, settings.windows) * calibration.window_tokens
        removals = (1 - settings.keep) * (len(parts) // 2)
        choice = _Way(1.0 + removals * (1 + settings.candidates / 2), settings.candidates + 4)
        operations, peak = _walked(graph, parts, num_tokens, choice)
        # the head of each candidate, to compare what it predicts
        operations += 2.0 * _head_elements(graph) * num_tokens * removals * (settings.candidates + 1)
        if settings.refit and settings.correction:
            refit = _walked(graph, parts, all_tokens, _Way(3.0, 4, has_gram=True, has_solver=True, is_kept=True))
            operations, peak = operations + refit[0], max(peak, refit[1])
    else:
        operations, peak = _walked(graph, parts, all_tokens, _way_of(stage))
        if getattr(settings, "method", "") == "taylor":
            num_tokens = min(calibration.windows, settings.gradient_windows) * calibration.window_tokens
            back = _walked(graph, parts, num_tokens, _Way(4.0, len(parts) + 3))  # forward twice, and back
            logits_bytes = 4 * 4 * LOGIT_ROWS * graph.values[graph.output].width
            operations += back[0] + 4.0 * 2.0 * _head_elements(graph) * num_tokens
            peak = max(peak, back[1] + logits_bytes)
        if stage.kind == "mixed":
            operations += _measuring(stage, graph, parts, recipe)
    return StagePlan(stage.kind, operations / rate, operations, peak + _PROGRAM_BYTES)


def _measuring(stage: Stage, graph: Graph, parts: tuple[Segment, ...], recipe: Recipe) -> float:
    """Operations of running what is behind each measured group, half of the model on average, in each of its types."""
    settings = stage.settings
    num_groups = sum(len(part.linears) for part in parts if part.name != "head")
    num_runs: float = num_groups * settings.measured_share * len(settings.types)
    num_windows: int = min(settings.measured_windows, recipe.calibration.held_out_windows)
    elements = sum(_elements(graph, part) for part in parts) / 2 + _head_elements(graph)
    return 2.0 * num_runs * elements * num_windows * recipe.calibration.window_tokens


def _walked(graph: Graph, parts: tuple[Segment, ...], num_tokens: int, way: _Way) -> tuple[float, int]:
    """Operations of a walk through the model, and bytes at its peak."""
    operations, peak = 0.0, 0
    for part in parts:
        linear = 2.0 * _elements(graph, part) * num_tokens * way.passes
        attention = sum(
            4.0 * op.num_heads * op.head_dim * num_tokens * CHUNK_ROWS / 8 * way.passes
            for op in part.ops
            if isinstance(op, Attention)
        )
        grams, solves, gram_bytes, kept = 0.0, 0.0, 0, 0
        for value, names in part.linears.items():
            width = graph.values[value].width
            kept += width * way.is_kept
            rows = sum(graph.weights[name][0] for name in names)
            solves += way.searches * _SEARCH_OPERATIONS * rows * width
            if width > way.widest:
                continue
            if way.has_gram:
                grams += 2.0 * width**2 * num_tokens
                gram_bytes += 4 * width**2
            if way.has_solver:
                solves += (2.0 * width**3 + 2.0 * rows * width**2 * way.rounds) / _SOLVER_SHARE
        operations += linear + attention + grams + solves
        weights = 4 * sum(math.prod(graph.weights[name]) for name in part.weights)
        outputs = [graph.values[op.output].width for op in part.ops if op.output != graph.output]  # the head is not run
        rows_bytes = 4 * CHUNK_ROWS * max(outputs, default=0) * 4 + 4 * num_tokens * kept
        peak = max(peak, 4 * weights + 4 * gram_bytes + rows_bytes)
    return operations, peak + way.num_states * 4 * num_tokens * _stream_width(graph)


def _way_of(stage: Stage) -> _Way:
    """How a stage other than prune-depth goes through the model."""
    settings, kind = stage.settings, stage.kind
    if kind in ("rotate", "trim-vocabulary"):
        return _Way(0.5, 2)
    method = getattr(settings, "method", "")
    if kind in ("quantize", "mixed"):
        searches = 1 + len(settings.types) if kind == "mixed" else method not in ("nearest", "hqq")
        has_gram = kind == "mixed" or method == "gptq"
        corrects = bool(settings.correction) and method in CORRECTED
        passes = 4.3 if kind == "mixed" else 2.3 if corrects else {"autoround": 400.0, "awq": 24.0}.get(method, 2.0)
        return _Way(
            passes,
            4 if corrects else 2,
            has_gram=has_gram,
            has_solver=has_gram,
            is_kept=bool(searches) and method != "autoround",
            searches=searches,
            rounds=0.6 * (1 + 2 * settings.sweeps),  # a sweep goes over the errors twice, for scales and for codes
            widest=getattr(settings, "widest", math.inf),
        )
    corrects = settings.refit and bool(settings.correction)
    return _Way(
        (5.0 if kind == "sparsify" else 4.0) if corrects else 2.0,
        4 if corrects else 2,
        has_gram=True,
        has_solver=method not in ("magnitude", "wanda"),
        is_kept=corrects,
    )


def _elements(graph: Graph, part: Segment) -> int:
    """Weights of the linears of a segment but the output head, which calibration does not run."""
    return sum(math.prod(graph.weights[name]) for name in part.matrices) * (part.name != "head")


def _head_elements(graph: Graph) -> int:
    return math.prod(graph.weights.get("output.weight", graph.weights["token_embd.weight"]))


def _stream_width(graph: Graph) -> int:
    return graph.weights["token_embd.weight"][1]


def _stored_bytes(checkpoint: Checkpoint, name: str) -> int:
    return checkpoint.weights.raw(name).nbytes
