"""What the cost model makes of the figures of a made-up probe, and that each of them leads to something."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from subsecond.backends.cost import CostModel, Span, WeightSize, predict
from subsecond.backends.probe import LinearSpeed, Overheads, Probe, RowCurve, StreamCurve, read_rate
from subsecond.backends.probe_store import parse_probe, probe_json
from subsecond.cli.probe_report import probe_rows
from subsecond.core.errors import InputError
from subsecond.graph.ops import Linear
from subsecond.graph.plan import Plan, compile_plan
from subsecond.graph.text import flops_per_position, flops_per_row
from tests.unit.backends.made_up_probe import PROBE, changed, elements, scaled_rates, whole_plan
from tests.unit.tiny_decoder import TINY, tiny_graph

NO_OVERHEADS = Overheads(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def tiny(probe: Probe, num_threads: int | None = None) -> CostModel:
    plan = compile_plan(tiny_graph())
    shapes = plan.segments[0].graph.weights
    sizes = {name: WeightSize("Q8_0", elements(s) * 17 // 16) for name, s in shapes.items() if len(s) > 1}
    return CostModel(plan, sizes, probe, num_threads)


def free_of_work(probe: Probe) -> Probe:
    """Only bytes take time."""
    speeds = tuple(replace(s, decode_s=0.0, prompt_s=0.0, channel_s=0.0) for s in probe.attention.speeds)
    linears = {n: replace(s, weight_s=RowCurve((1,), (0.0,))) for n, s in probe.linears.items()}
    return replace(
        probe,
        overheads=NO_OVERHEADS,
        linears=linears,
        activation_s=RowCurve((1,), (0.0,)),
        attention=replace(probe.attention, speeds=speeds),
        values=dict.fromkeys(probe.values, 0.0),
    )


def test_twice_the_bandwidth_takes_half_the_time_of_what_memory_bounds() -> None:
    probe = free_of_work(PROBE)
    assert tiny(scaled_rates(probe, 2.0)).tpot_s(20) == pytest.approx(tiny(probe).tpot_s(20) / 2)


def test_bandwidth_is_of_no_matter_to_what_arithmetic_bounds() -> None:
    fast, faster = scaled_rates(PROBE, 1e6), scaled_rates(PROBE, 2e6)
    assert tiny(fast).ttft_s(20, 8) == pytest.approx(tiny(faster).ttft_s(20, 8), rel=1e-3)


def test_half_the_threads_take_twice_the_time_of_arithmetic() -> None:
    probe = replace(scaled_rates(PROBE, 1e6), overheads=NO_OVERHEADS)
    probe = replace(probe, attention=replace(probe.attention, head_share=1.0))
    assert tiny(probe, 1).ttft_s(20, 8) == pytest.approx(2 * tiny(probe, 2).ttft_s(20, 8))


def test_one_thread_reads_at_the_rate_measured_with_one() -> None:
    probe = free_of_work(PROBE)
    one, two = tiny(probe, 1).tpot_s(20), tiny(probe, 2).tpot_s(20)
    num_bytes = sum(cost.weight_bytes + cost.kv_bytes for cost in tiny(probe).operators([Span(1, 20)], 1))
    rates = [read_rate(probe.read_rates, threads, num_bytes) for threads in (1, 2)]
    assert one / two == pytest.approx(rates[1] / rates[0])


@pytest.mark.parametrize("num_threads", [0, 3])
def test_more_threads_than_were_measured_are_refused(num_threads: int) -> None:
    with pytest.raises(InputError, match="between 1 and that"):
        tiny(PROBE, num_threads)


def test_an_operator_takes_the_longer_of_its_two_times_what_does_not_overlap_and_its_overhead() -> None:
    for num_rows in (1, 4):
        for cost in tiny(PROBE).operators([Span(num_rows, 0)], 1):
            is_mixed = num_rows > 1 and cost.operator == "Linear" and cost.output != "logits"
            is_mixed = is_mixed or cost.operator == "Attention"
            shown = 0.25 * min(cost.compute_s, cost.memory_s) if is_mixed else 0.0
            assert cost.seconds == pytest.approx(max(cost.compute_s, cost.memory_s) + shown + 1e-6)


def test_a_linear_by_hand() -> None:
    """Width 24 to 24 with a residual, three rows of the one span; 1/4 of the way from one to eight rows is 2.75."""
    model = tiny(scaled_rates(PROBE, 1e6))
    (op,) = [op for op in compile_plan(tiny_graph()).segments[0].graph.ops if op.output == "blk.0.attn_residual"]
    assert isinstance(op, Linear) and op.residual is not None and op.norm is None
    (cost,) = [cost for cost in model.operators([Span(3, 0)], 0) if cost.output == op.output]
    weight_s = 2e-11 + 2 / 7 * 6e-11
    activation_s = 1e-10 + 2 / 7 * 3e-10
    num_inputs, num_outputs = TINY.num_heads * TINY.head_dim, TINY.width
    add_s = 3 * num_outputs * PROBE.values["Add"]
    assert cost.compute_s == pytest.approx(num_inputs * num_outputs * weight_s + num_inputs * activation_s + add_s)
    assert cost.weight_bytes == num_inputs * num_outputs * 17 // 16
    assert cost.flops == 3 * (2 * num_inputs * num_outputs + num_outputs)


def test_operators_have_the_flops_of_the_graph() -> None:
    plan, sizes = whole_plan()
    graph = plan.segments[0].graph
    costs = {cost.output: cost for cost in CostModel(plan, sizes, PROBE).operators([Span(5, 0), Span(1, 9)], 2)}
    for op in graph.ops:
        if op.output not in costs:
            continue
        rows = 6 if graph.values[op.output].rows == "all" else 2
        # 1 + 2 + 3 + 4 + 5 positions and 10, or of a window of four 1 + 2 + 3 + 4 + 4 and 4
        pairs = {"attended": 25, "windowed": 18}.get(op.output, 0)
        assert costs[op.output].flops == rows * flops_per_row(op, graph) + pairs * flops_per_position(op)
    assert set(costs) == {op.output for op in graph.ops} - {"q", "k", "v", "k2", "v2"}


def test_a_window_bounds_what_is_read() -> None:
    plan, sizes = whole_plan()
    for start, positions in ((0, 1), (2, 3), (9, 4), (500, 4)):
        costs = {cost.output: cost for cost in CostModel(plan, sizes, PROBE).operators([Span(1, start)], 1)}
        assert costs["windowed"].kv_bytes == positions * 2 * 16 * 4
        assert costs["attended"].kv_bytes == (start + 1) * 2 * 4 * 8 * 4


def test_a_prompt_comes_in_steps() -> None:
    model = tiny(PROBE)
    steps = model.step_s([Span(8, 0)], 0) + model.step_s([Span(8, 8)], 0) + model.step_s([Span(4, 16)], 1)
    assert model.ttft_s(20, 8) == pytest.approx(steps)
    assert model.step_s([Span(4, 16)], 1) > model.step_s([Span(4, 16)], 0)  # the logits and drawing a token


def test_a_few_heads_leave_threads_without_work() -> None:
    def seconds(num_sequences: int, head_share: float, rest_share: float = 0.0) -> float:
        plan, sizes = whole_plan()
        probe = replace(
            scaled_rates(PROBE, 1e6),
            attention=replace(PROBE.attention, head_share=head_share, rest_share=rest_share),
        )
        costs = CostModel(plan, sizes, probe).operators([Span(1, 3)] * num_sequences, 0)
        return {cost.output: cost.compute_s for cost in costs}["windowed"]

    assert seconds(1, 0.0) == pytest.approx(2 * seconds(1, 1.0))  # one head, two threads
    assert seconds(1, 0.5) == pytest.approx(1.5 * seconds(1, 1.0))
    assert seconds(2, 0.0) == pytest.approx(seconds(2, 1.0))
    assert seconds(3, 1.0, 0.0) == pytest.approx(4 / 3 * seconds(3, 0.0, 1.0))
    assert seconds(3, 1.0, 0.5) == pytest.approx(7 / 6 * seconds(3, 0.0, 1.0))


def test_experts_cost_what_rows_choose() -> None:
    plan, sizes = whole_plan()
    model = CostModel(plan, sizes, PROBE)
    one, many = (
        {cost.output: cost for cost in model.operators([Span(rows, 0)], 0)}["mixed"].weight_bytes for rows in (1, 100)
    )
    all_bytes = sum(sizes[name].num_bytes for name in ("gates", "ups", "downs"))
    assert one == all_bytes // 2  # two of four
    assert many == all_bytes


def test_memory_is_weights_keys_values_and_arenas() -> None:
    plan, sizes = whole_plan()
    memory = CostModel(plan, sizes, PROBE).memory(context_tokens=100, max_rows=10)
    assert memory.weight_bytes == sum(size.num_bytes for size in sizes.values())
    assert memory.kv_bytes == 100 * 2 * (4 * 8 + 1 * 16) * 4
    planned = plan.segments[0].memory
    assert memory.arena_bytes == (planned.width + planned.selected_width) * 10 * 4
    assert memory.num_bytes == memory.weight_bytes + memory.kv_bytes + memory.arena_bytes


def with_new_format(num_sixteenths: int) -> tuple[Plan, Mapping[str, WeightSize]]:
    """The whole plan with its Q8_0 weights in a format of that many sixteenths of a byte a weight."""
    plan, sizes = whole_plan()
    shapes = plan.segments[0].graph.weights
    new = {name: WeightSize("NEW", elements(shapes[name]) * num_sixteenths // 16) for name in sizes}
    return plan, {name: new[name] if size.format == "Q8_0" else size for name, size in sizes.items()}


@pytest.mark.parametrize(("num_sixteenths", "stand_in"), [(16, "Q8_0"), (40, "Q8_0"), (8, "Q4_0")])
def test_a_format_that_was_not_measured_takes_the_figures_of_one_as_large_and_says_so(
    num_sixteenths: int, stand_in: str
) -> None:
    plan, sizes = with_new_format(num_sixteenths)
    model = CostModel(plan, sizes, PROBE)
    assert model.assumptions == (f"NEW was not measured; {stand_in} stands for it",)
    known = CostModel(plan, sizes, replace(PROBE, linears={**PROBE.linears, "NEW": PROBE.linears[stand_in]}))
    assert known.assumptions == ()
    assert known.ttft_s(20, 8) == model.ttft_s(20, 8)
    assert model.ttft_s(20, 8) > 0


def test_a_measured_format_needs_no_more_than_its_figures() -> None:
    plan, sizes = with_new_format(16)
    speed = LinearSpeed(1.0, RowCurve((1, 8), (5e-11, 9e-11)), StreamCurve((1,), (0.9,)), 0.5)
    model = CostModel(plan, sizes, replace(PROBE, linears={**PROBE.linears, "NEW": speed}))
    assert model.tpot_s(4) != CostModel(plan, sizes, PROBE).tpot_s(4)


def test_predict_gives_all_at_once() -> None:
    plan, sizes = whole_plan()
    model = CostModel(plan, sizes, PROBE, 1)
    found = predict(plan, sizes, PROBE, num_prompt=20, context=30, max_rows=8, num_threads=1)
    assert (found.ttft_s, found.tpot_s) == (model.ttft_s(20, 8), model.tpot_s(30))
    assert found.memory == model.memory(30, 8)
    assert found.assumptions == ()


def test_a_curve_is_straight_between_its_points_and_beyond() -> None:
    curve = RowCurve((2, 4, 8), (1.0, 3.0, 4.0))
    assert [curve.at(rows) for rows in (1, 2, 3, 4, 6, 8, 16)] == [1.0, 1.0, 2.0, 3.0, 3.5, 4.0, 6.0]
    assert RowCurve((4,), (2.0,)).at(8) == 4.0
    assert RowCurve((1, 2), (5.0, 1.0)).at(9) == 0.0  # time is never negative


def test_a_share_of_the_read_rate_goes_by_the_bytes_that_are_read() -> None:
    curve = StreamCurve((100, 10_000), (0.8, 0.4))
    assert [curve.at(size) for size in (1, 100, 1000, 10_000, 1e9)] == pytest.approx([0.8, 0.8, 0.6, 0.4, 0.4])


def test_read_rates_lie_between_those_of_the_nearest_working_sets() -> None:
    rates = PROBE.read_rates
    assert read_rate(rates, 2, 1) == read_rate(rates, 2, 2 << 10) == 6e10
    assert read_rate(rates, 2, 2 << 24) == read_rate(rates, 2, 1e12) == 1.5e10
    assert read_rate(rates, 2, 2 << 17) == pytest.approx((6e10 + 1.5e10) / 2)


LABELS = {"rows", "num_bytes", "thread_bytes", "num_threads", "head_dim", "group", "weight_bytes"}
"""What a figure was measured with; another would make it the figure of something else."""
SHOWN_ONLY = {("processor_share",), ("overheads", "barrier_s"), ("overheads", "run_s")}
"""What no prediction needs, and people read; the peaks too."""


def figures(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all figures in a probe's JSON."""
    if path[:1] == ("fingerprint",) or path == ("probe_version",) or LABELS.intersection(path):
        return
    if isinstance(content, int | float):
        yield path
    elif isinstance(content, dict | list):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from figures(value, (*path, key))


def outcomes(probe: Probe) -> tuple[float, ...]:
    """Predictions with the probe's rates, and with memory and arithmetic in turn as what bounds."""
    plan, sizes = whole_plan()
    found = []
    for variant in (probe, scaled_rates(probe, 1e6), scaled_rates(probe, 1e-6)):
        for num_threads in (1, 2):
            model = CostModel(plan, sizes, variant, num_threads)
            found += [model.ttft_s(rows, 8) for rows in (1, 4, 8, 20)] + [model.tpot_s(300), model.tpot_s(9, 3)]
            found.append(model.memory(100, 8).num_bytes)
    return tuple(found)


@pytest.mark.parametrize("path", list(figures(probe_json(PROBE))), ids=lambda path: ".".join(map(str, path)))
def test_every_figure_has_an_effect(path: tuple[Any, ...]) -> None:
    probe = parse_probe(changed(probe_json(PROBE), path, lambda value: value * 0.75), "test")
    if path in SHOWN_ONLY or path[0] == "peaks":
        shown = [
            probe_rows({"path": "p", "error": None, "prediction": None, "figures": probe_json(each)})
            for each in (PROBE, probe)
        ]
        assert shown[0] != shown[1]
    else:
        assert outcomes(probe) != outcomes(PROBE)


def test_a_speedup_divides_the_time_of_arithmetic_alone() -> None:
    bound_by_work = replace(scaled_rates(PROBE, 1e9), overheads=NO_OVERHEADS)
    assert tiny(bound_by_work).ttft_s(20, 8, speedup=4.0) == pytest.approx(tiny(bound_by_work).ttft_s(20, 8) / 4)
    bound_by_memory = free_of_work(PROBE)
    assert tiny(bound_by_memory).tpot_s(20, speedup=4.0) == pytest.approx(tiny(bound_by_memory).tpot_s(20))


def test_a_prompt_after_others_takes_as_long_as_the_end_of_both() -> None:
    model = tiny(PROBE)
    whole, first = model.ttft_s(24, 8), model.ttft_s(16, 8)
    one_draw = model.step_s([Span(8, 8)], 1) - model.step_s([Span(8, 8)], 0)
    assert model.ttft_s(8, 8, past=16) == pytest.approx(whole - (first - one_draw))
