"""Predicts time and memory of a plan from the probe of a machine: arithmetic alone, with no constant of any machine.

An operator takes the longer of two times, that of its arithmetic and that of the bytes it reads, and what of the
shorter does not overlap with it; its overhead comes on top.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from subsecond.backends.probe import VALUE_OPERATORS, AttentionSpeed, LinearSpeed, Probe, read_rate
from subsecond.core.errors import InputError
from subsecond.graph.graph import Graph
from subsecond.graph.ops import Attention, Linear, MixtureOfExperts, Op, Split
from subsecond.graph.plan import Plan
from subsecond.graph.text import flops_per_position, flops_per_row

FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class WeightSize:
    """Packed format of a weight and its bytes, those of all experts together; `unread_bytes` more lie in memory."""

    format: str
    num_bytes: int
    unread_bytes: int = 0

    @property
    def held_bytes(self) -> int:
        """Bytes in memory."""
        return self.num_bytes + self.unread_bytes


@dataclass(frozen=True, slots=True)
class Span:
    """Rows of one sequence in a step, at consecutive positions from `start`."""

    num_rows: int
    start: int


@dataclass(frozen=True, slots=True)
class OperatorCost:
    """One operator in one step. Of the shorter of `compute_s` and `memory_s` the share `overlap` takes no time."""

    output: str
    operator: str
    flops: int
    weight_bytes: int
    kv_bytes: int
    compute_s: float
    memory_s: float
    overhead_s: float
    overlap: float = 1.0

    @property
    def seconds(self) -> float:
        """Time of the operator."""
        shorter, longer = sorted((self.compute_s, self.memory_s))
        return longer + (1.0 - self.overlap) * shorter + self.overhead_s


@dataclass(frozen=True, slots=True)
class MemoryCost:
    """Bytes that a loaded plan takes: packed weights, key/value blocks and arenas."""

    weight_bytes: int
    kv_bytes: int
    arena_bytes: int

    @property
    def num_bytes(self) -> int:
        """All of them."""
        return self.weight_bytes + self.kv_bytes + self.arena_bytes


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a prompt and its answer take. `assumptions` says where a figure stands for another that was not measured."""

    ttft_s: float
    tpot_s: float
    memory: MemoryCost
    assumptions: tuple[str, ...]


def predict(
    plan: Plan,
    weights: Mapping[str, WeightSize],
    probe: Probe,
    *,
    num_prompt: int,
    context: int,
    max_rows: int,
    num_threads: int | None = None,
) -> Prediction:
    """TTFT of a prompt of `num_prompt` tokens in steps of `max_rows`, TPOT after `context` tokens, and memory for both.

    num_threads  threads that run the plan; None for those that the probe measured with
    """
    model = CostModel(plan, weights, probe, num_threads)
    memory = model.memory(max(num_prompt, context), max_rows)
    return Prediction(model.ttft_s(num_prompt, max_rows), model.tpot_s(context), memory, model.assumptions)


class CostModel:
    """Times of a plan's steps. `weights` has every matrix that the plan reads; vectors are too small to count."""

    def __init__(
        self, plan: Plan, weights: Mapping[str, WeightSize], probe: Probe, num_threads: int | None = None
    ) -> None:
        threads = probe.fingerprint.num_threads if num_threads is None else num_threads
        if not 1 <= threads <= probe.fingerprint.num_threads:
            raise InputError(
                f"num_threads is {threads}; the probe was measured with {probe.fingerprint.num_threads}, "
                "so it must lie between 1 and that"
            )
        self._plan = plan
        self._graphs = [segment.graph for segment in plan.segments]
        self._weights = weights
        self._probe = probe
        self._num_threads = threads
        self._slowdown = probe.fingerprint.num_threads / threads  # fewer threads do the work of those measured
        self._speeds: dict[str, LinearSpeed] = {}
        stand_ins = {}
        for graph in self._graphs:
            for name in {name for op in graph.ops for name in _matrices(op)}:
                size = weights[name]
                known = _nearest_format(probe, size.num_bytes / math.prod(graph.weights[name]), size.format)
                self._speeds[name] = probe.linears[known]
                if known != size.format:
                    stand_ins[size.format] = f"{size.format} was not measured; {known} stands for it"
        self.assumptions = tuple(stand_ins[name] for name in sorted(stand_ins))

    def ttft_s(self, num_prompt: int, max_rows: int, speedup: float = 1.0, past: int = 0) -> float:
        """Seconds from a prompt's tokens to the first of the answer on an idle engine; `speedup` as in `step_s`.

        The cache has nothing of the prompt, but `past` tokens before it.
        """
        starts = range(0, num_prompt, max_rows)
        steps = [Span(min(max_rows, num_prompt - start), past + start) for start in starts]
        return sum(self.step_s([step], int(step is steps[-1]), speedup) for step in steps)

    def tpot_s(self, context: int, num_sequences: int = 1, speedup: float = 1.0) -> float:
        """Seconds of a step that gives each of `num_sequences` its next token after `context` others."""
        return self.step_s([Span(1, context)] * num_sequences, num_sequences, speedup)

    def step_s(self, spans: Sequence[Span], num_selected: int, speedup: float = 1.0) -> float:
        """Seconds of one step that draws tokens for `num_selected` rows.

        `speedup` divides the time of arithmetic alone, not that of reading memory: a guess at more threads than were
        measured, which share the same memory.
        """
        overheads = self._probe.overheads
        num_logits = self._plan.segments[-1].graph.values[self._plan.segments[-1].graph.output].width
        sample_s = num_selected * (overheads.sample_s + overheads.logit_s * num_logits)
        costs = self.operators(spans, num_selected)
        work_s = sum(replace(cost, compute_s=cost.compute_s / speedup).seconds for cost in costs)
        return work_s + overheads.step_s + sample_s

    def operators(self, spans: Sequence[Span], num_selected: int) -> tuple[OperatorCost, ...]:
        """Every operator of a step, in order; those that only name a part of a value are left out."""
        num_rows = sum(span.num_rows for span in spans)
        counted = [
            (graph, op, num_rows if graph.values[op.output].rows == "all" else num_selected)
            for graph in self._graphs
            for op in graph.ops
            if not isinstance(op, Split)
        ]
        weight_bytes = [self._weight_bytes(op, graph, rows) if rows else 0 for graph, op, rows in counted]
        kv_bytes = [self._kv_bytes(op, spans) for _, op, _ in counted]
        rate = self._read_rate(sum(weight_bytes) + sum(kv_bytes))
        return tuple(
            OperatorCost(
                output=op.output,
                operator=type(op).__name__,
                flops=rows * flops_per_row(op, graph) + _num_pairs(op, spans) * flops_per_position(op),
                weight_bytes=weight_bytes[index],
                kv_bytes=kv_bytes[index],
                compute_s=self._compute_s(op, graph, rows, spans) * self._slowdown if rows else 0.0,
                memory_s=(weight_bytes[index] + kv_bytes[index]) / (rate * self._stream_share(op)),
                overhead_s=self._probe.overheads.call_s,
                overlap=self._overlap(op, rows),
            )
            for index, (graph, op, rows) in enumerate(counted)
        )

    def memory(self, context_tokens: int, max_rows: int) -> MemoryCost:
        """Bytes for keys and values of `context_tokens` and steps of up to `max_rows` rows."""
        read = {name for graph in self._graphs for name in graph.weights}
        attentions = [op for graph in self._graphs for op in graph.ops if isinstance(op, Attention)]
        widths = sum(segment.memory.width + segment.memory.selected_width for segment in self._plan.segments)
        return MemoryCost(
            weight_bytes=sum(self._weights[name].held_bytes for name in read if name in self._weights),
            kv_bytes=sum(self._position_bytes(op) for op in attentions) * context_tokens,
            arena_bytes=widths * max_rows * FLOAT_BYTES,
        )

    def _compute_s(self, op: Op, graph: Graph, num_rows: int, spans: Sequence[Span]) -> float:
        values, width = self._probe.values, graph.values[op.output].width
        match op:
            case Linear():
                num_inputs = graph.values[op.input].width
                weights = sum(math.prod(graph.weights[w]) * self._weight_s(w, num_rows) for w in op.weights)
                packing = num_inputs * self._probe.activation_s.at(num_rows)
                norm = num_rows * num_inputs * values["Normalize"] if op.norm else 0.0
                gate = num_rows * width * values["GatedActivation"] if op.gated else 0.0
                return weights + packing + norm + gate + (num_rows * width * values["Add"] if op.residual else 0.0)
            case Attention():
                return self._attend_s(op, spans)
            case MixtureOfExperts():
                return self._experts_s(op, graph, num_rows)
            case _:
                assert type(op).__name__ in VALUE_OPERATORS, f"{type(op).__name__} has no figures"
                return num_rows * width * values[type(op).__name__]

    def _experts_s(self, op: MixtureOfExperts, graph: Graph, num_rows: int) -> float:
        _, ff_width, width = graph.weights[op.gate]
        num_hit = _experts_hit(op, graph, num_rows)
        rows_each = num_rows * op.num_chosen / num_hit
        weights = sum(ff_width * width * self._weight_s(name, rows_each) for name in (op.gate, op.up, op.down))
        packing = (width + ff_width) * self._probe.activation_s.at(rows_each)
        values = (
            num_rows
            * op.num_chosen
            * (ff_width * self._probe.values["GatedActivation"] + width * self._probe.values["Add"])
        )
        return num_hit * (weights + packing) + values

    def _attend_s(self, op: Attention, spans: Sequence[Span]) -> float:
        speed = self._attention_speed(op)
        num_channels = op.num_heads * op.head_dim
        total = 0.0
        for span in spans:
            # rows of one sequence share reads and sums, one row does all of it alone
            pair_s = speed.prompt_s + (speed.decode_s - speed.prompt_s) / span.num_rows
            total += num_channels * (_num_pairs(op, [span]) * pair_s + span.num_rows * speed.channel_s)
        num_shares = sum(span.num_rows for span in spans) * op.num_kv_heads / self._num_threads
        figures = self._probe.attention
        spread = figures.head_share if num_shares < 1 else figures.rest_share
        return total * (spread + (1.0 - spread) * math.ceil(num_shares) / num_shares)

    def _weight_bytes(self, op: Op, graph: Graph, num_rows: int) -> int:
        match op:
            case Linear():
                return sum(self._weights[name].num_bytes for name in op.weights)
            case MixtureOfExperts():
                share = _experts_hit(op, graph, num_rows) / graph.weights[op.gate][0]
                return round(share * sum(self._weights[name].num_bytes for name in (op.gate, op.up, op.down)))
            case _:
                return 0

    def _kv_bytes(self, op: Op, spans: Sequence[Span]) -> int:
        if not isinstance(op, Attention):
            return 0
        positions = (_num_positions(op, span) for span in spans)
        return sum(positions) * self._position_bytes(op)

    def _position_bytes(self, op: Attention) -> int:
        return round(2 * op.num_kv_heads * op.head_dim * self._probe.attention.kv_bytes)

    def _weight_s(self, name: str, num_rows: float) -> float:
        return self._speeds[name].weight_s.at(num_rows)

    def _stream_share(self, op: Op) -> float:
        """Share of the memory's read rate that an operator reaches; of several formats by their bytes."""
        num_bytes = {name: self._weights[name].num_bytes for name in _matrices(op)}
        total = sum(num_bytes.values())
        if not total:
            return 1.0
        return total / sum(size / self._speeds[name].stream.at(total) for name, size in num_bytes.items())

    def _overlap(self, op: Op, num_rows: int) -> float:
        """Share of the shorter of the times of arithmetic and memory that is hidden; of linears of one row all."""
        if isinstance(op, Attention):
            return self._probe.attention.overlap
        matrices = _matrices(op)
        if num_rows <= 1 or not matrices:
            return 1.0
        return sum(self._speeds[name].overlap for name in matrices) / len(matrices)

    def _attention_speed(self, op: Attention) -> AttentionSpeed:
        """The figures measured nearest to the operator's heads."""
        group = op.num_heads // op.num_kv_heads

        def distance(speed: AttentionSpeed) -> tuple[float, float]:
            return abs(math.log(speed.head_dim / op.head_dim)), abs(math.log(speed.group / group))

        return min(self._probe.attention.speeds, key=distance)

    def _read_rate(self, num_bytes: int) -> float:
        """Bytes a second that the threads read, going through `num_bytes` again in every step."""
        measured, threads = self._probe.fingerprint.num_threads, self._num_threads
        rate = read_rate(self._probe.read_rates, measured, num_bytes)
        return (
            min(rate, threads * read_rate(self._probe.read_rates, 1, num_bytes / threads))
            if threads < measured
            else rate
        )


def _nearest_format(probe: Probe, weight_bytes: float, name: str) -> str:
    """`name` where it was measured, else the format whose weights take about as many bytes; of equals the slower."""

    def distance(candidate: str) -> tuple[float, float]:
        speed = probe.linears[candidate]
        return abs(math.log(speed.weight_bytes / weight_bytes)), -speed.weight_s.seconds[0]

    return name if name in probe.linears else min(sorted(probe.linears), key=distance)


def _matrices(op: Op) -> tuple[str, ...]:
    """Weights that a step reads whole, or as many experts of as its rows choose."""
    match op:
        case Linear():
            return op.weights
        case MixtureOfExperts():
            return (op.gate, op.up, op.down)
        case _:
            return ()


def _experts_hit(op: MixtureOfExperts, graph: Graph, num_rows: int) -> float:
    """Experts that at least one row chooses, if all are as likely."""
    num_experts = graph.weights[op.gate][0]
    return num_experts * (1.0 - (1.0 - op.num_chosen / num_experts) ** num_rows)


def _num_pairs(op: Op, spans: Sequence[Span]) -> int:
    """Pairs of a query and a position that it sees."""
    if not isinstance(op, Attention):
        return 0
    total = 0
    for span in spans:
        end = span.start + span.num_rows
        if not op.is_causal:
            total += span.num_rows * end
            continue
        window = op.window or end
        full = max(0, end - max(span.start, window))  # rows that see no less than the whole window
        first = span.num_rows - full
        total += first * span.start + first * (first + 1) // 2 + full * window
    return total


def _num_positions(op: Attention, span: Span) -> int:
    """Positions whose keys and values a span reads."""
    end = span.start + span.num_rows
    return min(end, op.window + span.num_rows - 1) if op.window and op.is_causal else end
