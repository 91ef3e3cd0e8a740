"""A plan: the graph after its passes, cut into segments that backends run; compiling one needs no weights."""

from __future__ import annotations

from dataclasses import dataclass

from subsecond.graph.graph import Graph
from subsecond.graph.memory import MemoryPlan, plan_memory
from subsecond.graph.passes.pipeline import optimize


@dataclass(frozen=True, slots=True)
class Segment:
    """A graph that one backend runs in one call on one device, and where its values lie."""

    backend: str
    device: str
    graph: Graph
    memory: MemoryPlan


@dataclass(frozen=True, slots=True)
class Plan:
    """Segments in the order in which a step runs them."""

    segments: tuple[Segment, ...]


def compile_plan(graph: Graph) -> Plan:
    """Optimize `graph` and plan its memory: one segment of the native backend on the processor."""
    optimized = optimize(graph)
    return Plan((Segment("native", "cpu", optimized, plan_memory(optimized)),))
