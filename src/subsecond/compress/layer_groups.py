"""Linears that share an input, and so a format: q/k/v, gate/up, and single ones; and the formats they may get."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from subsecond.formats.gguf_types import BLOCK_LAYOUTS, TensorType
from subsecond.graph.graph import Graph
from subsecond.graph.segments import Segment, segments

READINGS = ("int8", "int4")
_LAYER = re.compile(r"blk\.\d+\.")
_WIDE_TYPES = (TensorType.Q4_K, TensorType.Q5_K, TensorType.Q6_K, TensorType.Q8_0)
_NARROW_TYPES = (TensorType.Q4_0, TensorType.Q5_0, TensorType.Q8_0)


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Weights of linears that read one value.

    name     "blk.3.attn_q+attn_k+attn_v"; `kind` is that without the layer
    segment  number of the segment that it is in
    input    name of the value
    shapes   of the weights, (out, in) each
    """

    name: str
    segment: int
    input: str
    weights: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]

    @property
    def kind(self) -> str:
        """What such groups of all layers are called."""
        return _LAYER.sub("", self.name)

    @property
    def width(self) -> int:
        """Inputs of the weights."""
        return self.shapes[0][1]

    @property
    def num_outputs(self) -> int:
        """Of all weights together."""
        return sum(outputs for outputs, _ in self.shapes)

    @property
    def num_weights(self) -> int:
        """Numbers in all weights."""
        return self.num_outputs * self.width


def layer_groups(graph: Graph) -> tuple[LayerGroup, ...]:
    """The groups of an unfused graph in order, those of the output head left out."""
    parts = segments(graph)
    return tuple(
        LayerGroup(
            group_name(weights),
            index,
            source,
            weights,
            tuple((graph.weights[w][0], graph.weights[w][1]) for w in weights),
        )
        for index, segment in enumerate(parts)
        if not _is_head(segment, graph)
        for source, weights in segment.linears.items()
    )


def candidate_types(width: int) -> tuple[TensorType, ...]:
    """Types that hold weights of this width, from the smallest on; ends with F16, which holds any."""
    for types in (_WIDE_TYPES, _NARROW_TYPES):
        if all(width % BLOCK_LAYOUTS[each].num_elements == 0 for each in types):
            return (*types, TensorType.F16)
    return (TensorType.F16,)


def bits_of(tensor_type: TensorType) -> float:
    """Stored bits of a weight, scales included."""
    layout = BLOCK_LAYOUTS[tensor_type]
    return 8.0 * layout.num_bytes / layout.num_elements


def _is_head(segment: Segment, graph: Graph) -> bool:
    return graph.output in segment.outputs


def group_name(weights: Sequence[str]) -> str:
    """What weights that belong together are called: the first one in full, the others without their layer."""
    first, *others = (name.removesuffix(".weight") for name in weights)
    return "+".join([first, *(_LAYER.sub("", name) for name in others)])
