"""Rounds the weights of one segment of a model, each in a type that the caller names, by any method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from subsecond.compress.autoround import AutoRoundOptions, learn_rounding
from subsecond.compress.awq import AwqOptions, awq_scales, scaled_statistics
from subsecond.compress.correction import OriginalStream, corrected_target, original_stream
from subsecond.compress.gptq import Factor, GptqOptions, factorize, gptq_targets
from subsecond.compress.layer_groups import group_name
from subsecond.compress.linear_inputs import statistics_of, writes_stream
from subsecond.compress.methods import NEAREST_TYPES, MethodOptions, make_grid, quantize, quantize_rows
from subsecond.compress.output_error import QuantizationReport
from subsecond.compress.rounding import GRID_FORMATS, Floats
from subsecond.compress.row_weights import row_weights, weighted_statistics
from subsecond.compress.segment_run import SegmentResult
from subsecond.compress.stage import Decision, StageJob
from subsecond.compress.statistics import InputStatistics
from subsecond.compress.walk import Visit
from subsecond.formats.gguf_types import BLOCK_LAYOUTS, TensorType
from subsecond.graph.graph import Graph
from subsecond.graph.ops import Embed, GatedActivation, Linear, MixtureOfExperts, Normalize, inputs_of
from subsecond.models.weights import StoredTensor

METHODS = ("gptq", "search", "fit", "nearest", "awq", "autoround", "hqq")
WIDEST = 6144  # beyond it the time of gptq, which grows with the cube of the inputs, is all the time there is
DATA_FREE = ("fit", "nearest", "hqq")
DAMPING = 0.1
"""Of Gram matrices of some thousand rows. On the first five layers of SmolLM2-135M, turned, learning from 4,096 rows,
the streams of other text move by 0.0087 of their power, with 0.01 by 0.0100, with 1 by 0.0097."""
CORRECTED = ("gptq", "awq")  # methods that give back what the stream has lost
CORRECTION, CORRECTION_DAMPING = 0.5, 0.5
"""With 15,360 rows 0.0067 to 0.0070 instead of 0.0081. More correction, or less damping of it, learns text by heart:
with all of it and a damping of 0.01 0.0148 on other text, 0.0010 on its own (4,096 rows)."""
ROUTER = "_inp.weight"
PORTABLE_BITS = ("4", "5", "8", "16")  # that checkpoints hold
_WHY = {
    "gptq": "later inputs make up for the errors of earlier ones",
    "search": "scales that lose least on the inputs seen",
    "fit": "scales that lose least of the weights alone",
    "nearest": "needs no text",
    "awq": "inputs that matter were scaled up first, then as gptq",
    "autoround": "rounding learned against the outputs of the segment",
    "hqq": "zeros fitted to the weights alone",
}


@dataclass(slots=True)
class Made:
    """What was made of a segment so far: tensors by name, decisions in order."""

    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    decisions: list[Decision] = field(default_factory=list)


class RoundingSettings(Protocol):
    """What the settings of stages that round have in common."""

    @property
    def method(self) -> str:
        """One of METHODS."""

    @property
    def sweeps(self) -> int:
        """Rounds of coordinate descent after gptq."""

    @property
    def correction(self) -> float:
        """Share of what the stream has lost that is given back."""

    @property
    def steps(self) -> int:
        """Of learned rounding."""

    @property
    def seed(self) -> int:
        """Of learned rounding."""


class SegmentQuantizer:
    """One method with its options, for all segments of `graph`."""

    def __init__(
        self,
        graph: Graph,
        *,
        method: str = "gptq",
        num_sweeps: int = 2,
        damping: float = DAMPING,
        num_steps: int = 200,
        seed: int = 0,
        widest: int = WIDEST,
        correction: float = 0.0,
        original: OriginalStream | None = None,
        has_text: bool = True,
    ) -> None:
        self._graph, self._method, self._widest = graph, method, widest
        self._is_learning = has_text and method in CORRECTED  # from what the head reads
        self._correction, self._original = correction, original if correction else None
        self._options = MethodOptions(gptq=GptqOptions(damping, num_sweeps))
        self._rounding = AutoRoundOptions(num_steps=num_steps, num_checks=min(10, num_steps), seed=seed)

    @classmethod
    def of_stage(
        cls,
        job: StageJob,
        settings: RoundingSettings,
        *,
        damping: float = DAMPING,
        widest: int = WIDEST,
        has_text: bool = True,
    ) -> SegmentQuantizer:
        """The one that a stage asks for; with text it gives back what the stream has lost where its method can."""
        correction = settings.correction if has_text and settings.method in CORRECTED else 0.0
        return cls(
            job.checkpoint.graph(),
            method=settings.method,
            num_sweeps=settings.sweeps,
            damping=damping,
            num_steps=settings.steps,
            seed=settings.seed,
            widest=widest,
            correction=correction,
            original=original_stream(job, correction),
            has_text=has_text,
        )

    def tables(self, visit: Visit, head_bits: int, table_bits: int) -> dict[str, TensorType]:
        """Types of the embedding table and the head, of those that are rounded with the segment.

        A tied one has the more of both bits, and is rounded with the head where that learns from what it reads, so that
        the segments before see it unrounded. One whose width has no blocks becomes F16; a table of positions or of
        token types stays as it is.
        """
        graph, is_head = self._graph, self._graph.output in visit.segment.outputs
        embeddings = {op.weight for op in graph.ops if isinstance(op, Embed) and op.index == "token"}
        heads = {
            name
            for op in graph.ops
            if isinstance(op, Linear) and graph.values[op.output].rows == "selected"
            for name in op.weights
        }
        found = {}
        for name in sorted((embeddings | heads) & set(visit.weights)):
            bits = max(head_bits * (name in heads), table_bits * (name in embeddings))
            width = graph.weights[name][-1]
            blocks = {4: TensorType.Q4_0, 5: TensorType.Q5_0, 8: TensorType.Q8_0}.get(bits, TensorType.F16)
            if width % BLOCK_LAYOUTS[blocks].num_elements:
                blocks = TensorType.F16
            with_head = name in heads and (name not in embeddings or self._can_learn(name, blocks))
            if with_head == is_head:
                found[name] = blocks
        return found

    def round(
        self, visit: Visit, types: Mapping[str, TensorType], tables: Mapping[str, TensorType] | None = None
    ) -> SegmentResult:
        """Round the linears and experts of the segment, and leave what they became in `visit.weights`.

        types   of weights by name; routers of experts stay as they are
        tables  of the embedding table and the head, from `tables`; only a head of few bits learns from text
        """
        made, tables = Made(), tables or {}
        is_head = self._graph.output in visit.segment.outputs
        for name, tensor_type in tables.items():
            self._round_table(visit, name, tensor_type, is_head, made)
        if is_head:
            return SegmentResult(made.tensors, tuple(made.decisions))
        self._round_experts(visit, types, made)
        groups = {
            value: tuple(name for name in names if not name.endswith(ROUTER) and name not in tables)
            for value, names in visit.segment.linears.items()
        }
        groups = {value: names for value, names in groups.items() if names}
        needs_data = self._original is not None or (
            self._method not in DATA_FREE
            and any(types[name] not in NEAREST_TYPES for names in groups.values() for name in names)
        )
        stream = self._original.after(visit.index) if self._original is not None and needs_data else None
        weights = row_weights(visit, stream) if needs_data else None
        if self._method == "autoround":
            self._learn(visit, types, groups, weights, made)
        else:
            scaled = self._scale_inputs(visit, types, groups, weights, made) if self._method == "awq" else {}
            for value, names in groups.items():
                self._round_group(visit, types, value, names, scaled.get(value), weights, made)
        return SegmentResult(made.tensors, tuple(made.decisions))

    def _can_learn(self, name: str, tensor_type: TensorType) -> bool:
        """Whether a head of that type is rounded by what it reads."""
        is_narrow = self._graph.weights[name][-1] <= self._widest
        return self._is_learning and tensor_type not in NEAREST_TYPES and is_narrow

    def _round_table(self, visit: Visit, name: str, tensor_type: TensorType, is_head: bool, made: Made) -> None:
        """Round the embedding table or the head; a head of few bits by what it reads."""
        rule: Literal["nearest", "search", "gptq"] = "search"
        statistics, factor = None, None
        if tensor_type in NEAREST_TYPES or self._method == "nearest":
            rule = "nearest"
        elif is_head and self._can_learn(name, tensor_type):
            statistics = statistics_of(visit, name)
            factor = factorize(statistics, self._options.gptq)
            rule = "gptq"
        weight = visit.weights[name].numpy()
        stored, report = quantize_rows(weight, tensor_type, rule, statistics, self._options, factor)
        why = "; ".join((_WHY["fit" if rule == "search" else rule], *report.notes))
        self._keep(visit, made, (name,), stored, why, report if rule != "nearest" else None)

    def _round_group(
        self,
        visit: Visit,
        types: Mapping[str, TensorType],
        value: str,
        names: tuple[str, ...],
        statistics: InputStatistics | None,
        weights: Tensor | None,
        made: Made,
    ) -> None:
        """Round the linears that read `value`, whose inputs come from what is rounded of the segment already."""
        method = "gptq" if self._method == "awq" else self._method
        reason = _WHY[self._method]
        if method == "gptq" and visit.weights[names[0]].shape[1] > self._widest:
            method = "search"
            reason = f"more than {self._widest} inputs are too many for gptq; {_WHY[method]}"
        is_plain = all(types[name] in NEAREST_TYPES for name in names)
        targets: dict[str, Floats] = {}
        if method == "gptq" and statistics is None and self._can_correct(visit, names):
            assert self._original is not None, "corrections were asked for"
            statistics, targets[names[0]] = corrected_target(
                visit, names[0], self._original, self._correction, CORRECTION_DAMPING, weights
            )
        if method not in DATA_FREE and not is_plain and statistics is None:
            statistics = weighted_statistics(visit, (value,), weights, has_gram=method == "gptq", is_kept=True)[value]
        factor: Factor | None = None
        if method == "gptq" and not is_plain:
            assert statistics is not None
            factor = factorize(statistics, self._options.gptq)
        for tensor_type in dict.fromkeys(types[name] for name in names):
            alike = tuple(name for name in names if types[name] is tensor_type)
            weight = np.concatenate([targets.get(name, visit.weights[name].numpy()) for name in alike])
            chosen = "nearest" if tensor_type in NEAREST_TYPES else method
            rule = "search" if chosen == "fit" else chosen
            stored, report = quantize(weight, tensor_type, rule, statistics, self._options, factor)  # type: ignore[arg-type]
            simple = _WHY["nearest"] if not targets else "gives back a part of what the residual stream has lost"
            why = "; ".join((reason if chosen != "nearest" else simple, *report.notes))
            self._keep(visit, made, alike, stored, why, report)

    def _can_correct(self, visit: Visit, names: tuple[str, ...]) -> bool:
        """Whether the weights are one that writes to the stream, and corrections are asked for."""
        bias = names[0].removesuffix("weight") + "bias"
        is_alone = len(names) == 1 and bias not in visit.weights
        return self._original is not None and is_alone and writes_stream(visit.segment, names[0])

    def _learn(
        self,
        visit: Visit,
        types: Mapping[str, TensorType],
        groups: Mapping[str, tuple[str, ...]],
        row_counts: Tensor | None,
        made: Made,
    ) -> None:
        """Learn the rounding of all linears of the segment together."""
        statistics = weighted_statistics(visit, groups, row_counts, has_gram=True)
        inputs = {name: statistics[value] for value, names in groups.items() for name in names}
        factors = {value: factorize(statistics[value], self._options.gptq) for value in groups}
        factor_of = {name: factors[value] for value, names in groups.items() for name in names}
        learned = [name for name in inputs if types[name] not in NEAREST_TYPES]
        for name in inputs:
            if name not in learned:
                stored, report = quantize(visit.weights[name].numpy(), types[name], "nearest", inputs[name])
                self._keep(visit, made, (name,), stored, _WHY["nearest"], report)
        if not learned:
            return
        assert row_counts is not None, "learning looks at data"
        weights: dict[str, Floats] = {name: visit.weights[name].numpy() for name in learned}
        grids = {name: make_grid(weights[name], types[name], inputs[name], factor=factor_of[name]) for name in learned}
        starts = dict(weights)
        for name in learned:
            factor = factor_of[name]
            if factor is not None:
                grids[name], starts[name] = gptq_targets(weights[name], grids[name], factor, self._options.gptq)
        chunks = list(visit.chunks())
        with torch.no_grad():
            targets = [visit.outputs(rows, step) for rows, step in chunks]

        def loss(tensors: Mapping[str, Tensor], index: int) -> Tensor:
            rows, step = chunks[index]
            outputs = visit.outputs(rows, step, {**visit.weights, **tensors})
            errors = [(outputs[name] - target).square().mean(dim=1) for name, target in targets[index].items()]
            return (torch.stack(errors).sum(dim=0) * row_counts[rows]).mean()

        found = learn_rounding(weights, grids, loss, len(chunks), self._rounding, inputs, starts)
        for name, (stored, report) in found.items():
            self._keep(visit, made, (name,), stored, report.notes[0], report)

    def _scale_inputs(
        self,
        visit: Visit,
        types: Mapping[str, TensorType],
        groups: Mapping[str, tuple[str, ...]],
        weights: Tensor | None,
        made: Made,
    ) -> dict[str, InputStatistics]:
        """Scale inputs whose producer takes the scales up; statistics of the scaled ones."""
        found = weighted_statistics(visit, groups, weights, has_gram=True)
        scaled: dict[str, InputStatistics] = {}
        for value, names in groups.items():
            producer = producer_of(visit, value)
            if producer is None or any(
                types[name] not in GRID_FORMATS
                or GRID_FORMATS[types[name]].has_offsets
                or BLOCK_LAYOUTS[types[name]].num_elements > 32
                for name in names
            ):
                continue
            matrices = [visit.weights[name].numpy() for name in names]
            scales = awq_scales(matrices, found[value], types[names[0]], AwqOptions())
            factors = torch.from_numpy(scales)
            for name in names:
                visit.weights[name] = visit.weights[name] * factors
            for name in producer:
                held = visit.weights[name]
                visit.weights[name] = held / (factors[:, None] if held.ndim == 2 else factors)
                if held.ndim == 1:
                    made.tensors[name] = as_float32(visit.weights[name])
            scaled[value] = scaled_statistics(found[value], scales)
        return scaled

    def _round_experts(self, visit: Visit, types: Mapping[str, TensorType], made: Made) -> None:
        """Experts are rounded without statistics, of which each would need its own."""
        for op in visit.segment.ops:
            if isinstance(op, MixtureOfExperts):
                for name in (op.gate, op.up, op.down):
                    weight = visit.weights[name].numpy()
                    flat = np.ascontiguousarray(weight.reshape(-1, weight.shape[-1]))
                    method = "nearest" if types[name] in NEAREST_TYPES or self._method == "nearest" else "search"
                    stored, report = quantize(flat, types[name], method)  # type: ignore[arg-type]
                    whole = StoredTensor(stored.type, weight.shape, stored.raw)
                    self._keep(visit, made, (name,), whole, "experts are rounded without data", report)

    def _keep(
        self,
        visit: Visit,
        made: Made,
        names: tuple[str, ...],
        stored: StoredTensor,
        why: str,
        report: QuantizationReport | None = None,
    ) -> None:
        """Keep `stored`, the rows of all `names`, under their names."""
        start, num_rows = 0, stored.raw.size // stored.shape[0]
        for name in names:
            shape = tuple(visit.weights[name].shape)
            end = start + shape[0]
            part = StoredTensor(stored.type, shape, stored.raw[start * num_rows : end * num_rows])
            made.tensors[name] = part
            visit.weights[name] = torch.from_numpy(part.dequantize())
            start = end
        method = report.method if report is not None else "nearest"
        figures = {} if report is None else {"bits_per_weight": report.bits_per_weight}
        if report is not None and np.isfinite(report.relative_error):
            figures["relative_error"] = report.relative_error
        made.decisions.append(Decision(group_name(names), f"{stored.type.name} by {method}", why, figures))


def producer_of(visit: Visit, value: str) -> tuple[str, ...] | None:
    """Weights that `value` is proportional to, channel by channel, and that make nothing else: a norm's, or the rows
    of the up projection; None where there are none.
    """
    by_output = {op.output: op for op in visit.segment.ops}
    readers = [op for op in visit.segment.ops if value in inputs_of(op)]
    op = by_output.get(value)
    if value in visit.segment.outputs or not all(isinstance(reader, Linear) for reader in readers):
        return None
    if isinstance(op, Normalize) and op.group_width is None:
        return (op.norm.weight, op.norm.bias) if op.norm.bias else (op.norm.weight,)
    if isinstance(op, GatedActivation):
        up = by_output.get(op.up)
        is_only = sum(op.up in inputs_of(other) for other in visit.segment.ops) == 1
        if isinstance(up, Linear) and len(up.weights) == 1 and is_only:
            return tuple(name for name in (*up.weights, *up.biases) if name)
    return None


def as_float32(value: Tensor) -> StoredTensor:
    """A vector as F32."""
    array = np.ascontiguousarray(value.numpy())
    return StoredTensor(TensorType.F32, array.shape, array.view(np.uint8).reshape(-1))
