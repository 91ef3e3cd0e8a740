"""The cost model of a checkpoint as the native backend would load it; reads no weights but those to be made sparse."""

from __future__ import annotations

from collections.abc import Mapping

from subsecond import _native
from subsecond.backends.cost import CostModel, WeightSize
from subsecond.backends.native.loading import is_packed
from subsecond.backends.native.weight_formats import (
    CHANNEL_FORMATS,
    NESTED_READINGS,
    VECTOR_FORMAT,
    Weights,
    choose_formats,
    readings_of,
)
from subsecond.backends.native.weights import packed_sizes
from subsecond.backends.probe import Probe
from subsecond.graph.graph import Graph
from subsecond.graph.plan import compile_plan
from subsecond.models.checkpoint import Checkpoint


def cost_model(
    checkpoint: Checkpoint,
    probe: Probe,
    context_tokens: int | None = None,
    weights: Weights | None = None,
    num_threads: int | None = None,
) -> CostModel:
    """What a model costs on the machine of `probe`; `context_tokens` and `weights` as in `load`.

    num_threads  at most those that the probe measured with; None for these
    """
    plan = compile_plan(checkpoint.graph(context_tokens))
    sizes: dict[str, WeightSize] = {}
    for segment in plan.segments:
        sizes |= weight_sizes(checkpoint, segment.graph, weights)
    return CostModel(plan, sizes, probe, num_threads)


def weight_sizes(checkpoint: Checkpoint, graph: Graph, weights: Weights | None = None) -> Mapping[str, WeightSize]:
    """Packed format and bytes of each matrix: those of the artifact where it is used, else as loading would pack it."""
    if checkpoint.artifact is not None and is_packed(checkpoint, weights):
        tensors = checkpoint.artifact.manifest.tensors
        sizes = ((name, tensors[name]) for name in graph.weights)
        return {
            name: _as_read(t.format, t.num_bytes, graph.weights[name], weights)
            for name, t in sizes
            if t.format != VECTOR_FORMAT
        }
    formats = choose_formats(graph, checkpoint.weights, readings_of(checkpoint.readings, weights))
    packed = packed_sizes(checkpoint.weights, formats)
    return {name: _as_read(p.format, p.num_bytes, graph.weights[name], weights) for name, p in packed.items()}


def _as_read(packed: str, num_bytes: int, shape: tuple[int, ...], weights: Weights | None) -> WeightSize:
    """What a step reads of a weight: of a nested one what the plain format of its reading would be, and the rest."""
    readings = {CHANNEL_FORMATS[name]: name for name in NESTED_READINGS}
    if packed not in readings:
        return WeightSize(packed, num_bytes)
    reading = weights if weights in NESTED_READINGS else readings[packed]
    if reading == "nested8":
        return WeightSize("INT8", num_bytes)
    read_bytes = _native.packed_size("INT4", *shape)
    return WeightSize("INT4", read_bytes, num_bytes - read_bytes)
