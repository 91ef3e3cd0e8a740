"""The cost model of a checkpoint as the native backend would load it; reads no weights."""

from __future__ import annotations

from collections.abc import Mapping

from subsecond.backends.cost import CostModel, WeightSize
from subsecond.backends.native.loading import is_packed
from subsecond.backends.native.weight_formats import VECTOR_FORMAT, Weights, choose_formats, readings_of
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
        return {name: WeightSize(t.format, t.num_bytes) for name, t in sizes if t.format != VECTOR_FORMAT}
    formats = choose_formats(graph, checkpoint.weights, readings_of(checkpoint.readings, weights))
    packed = packed_sizes(checkpoint.weights, formats)
    return {name: WeightSize(formats[name], num_bytes) for name, num_bytes in packed.items()}
