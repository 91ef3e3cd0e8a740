"""The cost model of a checkpoint as the native backend would load it; reads no weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from subsecond.backends.cost import CostModel, WeightSize
from subsecond.backends.native.loading import is_packed
from subsecond.backends.native.weights import VECTOR_FORMAT, packed_sizes
from subsecond.backends.probe import Probe
from subsecond.graph.plan import compile_plan
from subsecond.models.checkpoint import Checkpoint


def cost_model(checkpoint: Checkpoint, probe: Probe, context_tokens: int | None = None) -> CostModel:
    """What a model costs on the machine of `probe`; `context_tokens` as in `load`."""
    plan = compile_plan(checkpoint.graph(context_tokens))
    names = [name for segment in plan.segments for name in segment.graph.weights]
    return CostModel(plan, weight_sizes(checkpoint, names), probe)


def weight_sizes(checkpoint: Checkpoint, names: Iterable[str]) -> Mapping[str, WeightSize]:
    """Packed format and bytes of each matrix: those of the artifact where it is used, else as loading would pack it."""
    if checkpoint.artifact is not None and is_packed(checkpoint):
        tensors = checkpoint.artifact.manifest.tensors
        sizes = ((name, tensors[name]) for name in names)
        return {name: WeightSize(t.format, t.num_bytes) for name, t in sizes if t.format != VECTOR_FORMAT}
    return {name: WeightSize(*size) for name, size in packed_sizes(checkpoint.weights, names).items()}
