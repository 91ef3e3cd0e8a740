"""A probe of round numbers and a graph with every operator, for tests of what is predicted from one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from subsecond.backends.cost import WeightSize
from subsecond.backends.probe import (
    VALUE_OPERATORS,
    AttentionFigures,
    AttentionSpeed,
    Fingerprint,
    LinearSpeed,
    Overheads,
    Peak,
    Probe,
    ReadRate,
    RowCurve,
    StreamCurve,
)
from subsecond.graph.builder import GraphBuilder
from subsecond.graph.memory import plan_memory
from subsecond.graph.ops import Attention, Linear, MixtureOfExperts, Norm, Rotary
from subsecond.graph.plan import Plan, Segment

OWNER = Fingerprint("a processor", "x86_64", ("avx2", "fma"), 4, "1.2.3", "1-2", 1, "avx2", 2)
PROBE = Probe(
    fingerprint=OWNER,
    processor_share=1.0,
    peaks=(Peak("avx2", "vfmaddps ymm", 1, 1e11), Peak("avx2", "vfmaddps ymm", 2, 2e11)),
    read_rates=(
        ReadRate(1, 1 << 10, 3e10),
        ReadRate(1, 1 << 24, 1e10),
        ReadRate(2, 1 << 10, 6e10),
        ReadRate(2, 1 << 24, 1.5e10),
    ),
    overheads=Overheads(step_s=1e-5, call_s=1e-6, barrier_s=1e-7, run_s=2e-7, sample_s=5e-6, logit_s=1e-9),
    linears={
        "Q4_0": LinearSpeed(0.5625, RowCurve((1, 8), (1e-11, 4e-11)), StreamCurve((1000, 100_000), (0.5, 0.25)), 0.5),
        "Q8_0": LinearSpeed(1.0625, RowCurve((1, 8), (2e-11, 8e-11)), StreamCurve((1000, 100_000), (0.8, 0.4)), 0.75),
    },
    activation_s=RowCurve((1, 8), (1e-10, 4e-10)),
    attention=AttentionFigures(
        speeds=(
            AttentionSpeed(head_dim=8, group=2, decode_s=4e-11, prompt_s=2e-11, channel_s=1e-10),
            AttentionSpeed(head_dim=16, group=4, decode_s=3e-11, prompt_s=1e-11, channel_s=2e-10),
        ),
        head_share=0.5,
        rest_share=0.5,
        overlap=0.75,
        kv_bytes=4.0,
    ),
    values={name: (index + 1) * 1e-10 for index, name in enumerate(VALUE_OPERATORS)},
)

WIDTH, FF_WIDTH, VOCAB, EXPERTS = 64, 128, 256, 4


def whole_plan() -> tuple[Plan, Mapping[str, WeightSize]]:
    """A plan with every operator, and the packed sizes of its weights: linears in Q8_0, experts in Q4_0."""
    shapes: dict[str, tuple[int, ...]] = {
        "table": (VOCAB, WIDTH),
        "norm": (WIDTH,),
        "qkv": (256, WIDTH),
        "out": (WIDTH, WIDTH),
        "router": (EXPERTS, WIDTH),
        "gate": (FF_WIDTH, WIDTH),
        "up": (FF_WIDTH, WIDTH),
        "gates": (EXPERTS, FF_WIDTH, WIDTH),
        "ups": (EXPERTS, FF_WIDTH, WIDTH),
        "downs": (EXPERTS, WIDTH, FF_WIDTH),
    }
    graph = GraphBuilder(shapes)
    graph.scale("x", graph.embed("tokens", "table", VOCAB, WIDTH), 2.0)
    graph.normalize("normed", "x", Norm("norm", 1e-5))
    graph.linear("heads", "normed", "qkv", 256)
    for name, start, end in (("q", 0, 64), ("k", 64, 96), ("v", 96, 128), ("k2", 128, 144), ("v2", 144, 160)):
        graph.split(name, "heads", start, end)
    rotary = Rotary((1.0, 0.5, 0.25, 0.125), "half")
    graph.rope("rotated", "q", 8, rotary)
    graph.attention(Attention("attended", "rotated", "k", "v", 0, 8, 4, 8, 0.35, rotary))
    graph.attention(Attention("windowed", "q", "k2", "v2", 1, 4, 1, 16, 0.25, window=4))
    graph.add("both", "attended", "windowed")
    graph.linear("projected", "both", "out", WIDTH)
    graph.linear("routed", "projected", "router", EXPERTS)
    experts = MixtureOfExperts("mixed", "projected", "routed", "gates", "ups", "downs", 2, True, "silu")
    graph.mixture_of_experts(experts, EXPERTS, FF_WIDTH)
    graph.activate("active", graph.linear("g", "mixed", "gate", FF_WIDTH), "gelu")
    graph.gated_activation("gated", "active", graph.linear("u", "mixed", "up", FF_WIDTH), "silu")
    graph.select_rows("last", "mixed")
    graph.softcap("logits", graph.linear("plain logits", "last", "table", VOCAB), 30.0)
    built = graph.build("logits")
    ops = [
        replace(op, residual="x", norm=Norm("norm", 1e-5))
        if isinstance(op, Linear) and op.output == "projected"
        else op
        for op in built.ops
    ]
    sizes = {
        name: WeightSize("Q4_0", elements(shape) * 9 // 16)
        if len(shape) == 3
        else WeightSize("Q8_0", elements(shape) * 17 // 16)
        for name, shape in shapes.items()
        if len(shape) > 1
    }
    whole = replace(built, ops=tuple(ops))
    return Plan((Segment("native", "cpu", whole, plan_memory(built)),)), sizes


def elements(shape: tuple[int, ...]) -> int:
    count = 1
    for extent in shape:
        count *= extent
    return count


def scaled_rates(probe: Probe, factor: float) -> Probe:
    return replace(probe, read_rates=tuple(replace(rate, bytes_s=rate.bytes_s * factor) for rate in probe.read_rates))


def changed(content: Any, path: tuple[Any, ...], edit: Any) -> Any:
    """A copy of a JSON tree with `edit` applied to the value at `path`."""
    if not path:
        return edit(content)
    copy = dict(content) if isinstance(content, dict) else list(content)
    copy[path[0]] = changed(content[path[0]], path[1:], edit)
    return copy
