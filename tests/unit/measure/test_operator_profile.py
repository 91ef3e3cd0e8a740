"""The profile of a step adds up, and names kernels that are slower than they should be."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import numpy as np
import pytest

from subsecond.backends.batch import Float32, ForwardBatch
from subsecond.backends.cost import CostModel, Span
from subsecond.backends.probe import read_rate
from subsecond.core.errors import InputError
from subsecond.measure.operator_profile import (
    StepShape,
    findings,
    group_name,
    profile_steps,
    step_shapes,
)
from tests.unit.backends.made_up_probe import PROBE, whole_plan

PLAN, WEIGHTS = whole_plan()
COST = CostModel(PLAN, WEIGHTS, PROBE)
STEP_S = 0.5


class TimedBackend:
    """Operators take as long as predicted, times `slowdown` by their name; every forward is kept."""

    block_tokens = 4
    num_blocks = 32
    max_rows = 16

    def __init__(self, isa: str = "avx2", slowdown: dict[str, float] | None = None) -> None:
        self.isa = isa
        self.slowdown = slowdown or {}
        self.batches: list[ForwardBatch] = []
        self._is_on = False

    def forward(self, batch: ForwardBatch) -> Float32:
        self.batches.append(batch)
        return np.zeros((len(batch.logits_rows), 1), np.float32)

    def profile(self, is_on: bool) -> None:
        self._is_on = is_on

    def profiled_ns(self) -> dict[str, int]:
        assert self._is_on
        batch = self.batches[-1]
        num_sequences = len(batch.block_tables)
        rows = batch.num_rows // num_sequences
        costs = COST.operators([Span(rows, int(batch.positions[0]))] * num_sequences, num_sequences)
        return {c.output: round(c.seconds * 1e9 * self.slowdown.get(c.output, 1.0)) for c in costs}


def clock() -> Iterator[float]:
    return (number * STEP_S for number in count())


def test_a_profile_adds_up() -> None:
    backend = TimedBackend()
    shape = StepShape("decode", 1, 5, num_sequences=3)
    (profile,) = profile_steps(backend, COST, PROBE, [shape], clock().__next__)
    costs = COST.operators(shape.spans, 3)
    assert profile.num_rows == 3 and profile.isa == "avx2"
    assert profile.ms == STEP_S * 1e3
    assert sum(g.ms for g in profile.groups) == pytest.approx(sum(c.seconds for c in costs) * 1e3, rel=1e-3)
    assert sum(g.share for g in profile.groups) == pytest.approx(1.0)
    assert profile.other_ms == pytest.approx(profile.ms - sum(g.ms for g in profile.groups))
    assert sum(g.operations for g in profile.groups) == sum(c.flops for c in costs)
    assert sum(g.num_bytes for g in profile.groups) == sum(c.weight_bytes + c.kv_bytes for c in costs)
    assert [g.ms for g in profile.groups] == sorted((g.ms for g in profile.groups), reverse=True)
    assert {name for c in costs for name in [group_name(c.output)]} == {g.name for g in profile.groups}
    assert findings([profile], "avx2") == []


def test_shares_are_those_of_the_measured_peaks() -> None:
    (profile,) = profile_steps(TimedBackend(), COST, PROBE, [StepShape("prefill", 8, 0)], clock().__next__)
    group = next(g for g in profile.groups if g.operator == "Linear")
    assert group.operations_s == pytest.approx(group.operations / group.ms * 1e3)
    assert group.operations_share == pytest.approx(group.operations_s / 2e11)
    rate = read_rate(PROBE.read_rates, 2, sum(g.num_bytes for g in profile.groups))
    assert group.bytes_share == pytest.approx(group.num_bytes / group.ms * 1e3 / rate)


def test_the_step_is_the_one_asked_for() -> None:
    backend = TimedBackend()
    profile_steps(backend, COST, PROBE, [StepShape("mixed", 2, 7, num_sequences=3)], clock().__next__)
    batch = backend.batches[-1]
    assert batch.positions.tolist() == [7, 8] * 3
    assert batch.row_sequence.tolist() == [0, 0, 1, 1, 2, 2]
    assert batch.block_tables.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert batch.logits_rows.tolist() == [1, 3, 5]


def test_kernels_below_what_the_machine_has_are_a_finding() -> None:
    profiles = profile_steps(TimedBackend("scalar"), COST, PROBE, [StepShape("decode", 1, 3)], clock().__next__)
    (found,) = findings(profiles, "avx2")
    assert "scalar kernels run, though avx2 can run here" in found


def test_an_operator_far_slower_than_predicted_is_a_finding() -> None:
    slow = max(COST.operators([Span(1, 3)], 1), key=lambda cost: cost.seconds).output
    backend = TimedBackend(slowdown={slow: 5.0})
    profiles = profile_steps(backend, COST, PROBE, [StepShape("decode", 1, 3)], clock().__next__)
    (found,) = findings(profiles, "avx2")
    assert group_name(slow) in found and "5.0 times as long as predicted" in found
    assert findings(profiles, "avx2", is_quiet=False) == []


def test_a_step_beyond_what_was_loaded_is_refused() -> None:
    with pytest.raises(InputError, match="has 17 rows in a step; the model was loaded for 16"):
        profile_steps(TimedBackend(), COST, PROBE, [StepShape("prefill", 17, 0)], clock().__next__)
    with pytest.raises(InputError, match=r"needs keys and values of 258 tokens; .* for 128; .*--context-tokens"):
        profile_steps(TimedBackend(), COST, PROBE, [StepShape("decode", 1, 128, 2)], clock().__next__)


def test_the_shapes_fit_the_rows_of_a_step() -> None:
    shapes = step_shapes(prompt_tokens=2048, context_tokens=512, num_sequences=[1, 8], max_rows=512)
    assert [(s.num_rows, s.start, s.num_sequences) for s in shapes] == [(512, 0, 1), (1, 512, 1), (1, 512, 8)]


@pytest.mark.parametrize(
    ("output", "name"),
    [("blk.12.q+k+v", "blk.*.q+k+v"), ("logits", "logits"), ("h.0.mlp", "h.*.mlp"), ("layer1", "layer1")],
)
def test_layers_are_told_apart_by_number_alone(output: str, name: str) -> None:
    assert group_name(output) == name
