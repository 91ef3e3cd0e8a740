"""Write a graph operator by operator; widths follow from the weights, and shapes are checked while building."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from subsecond.core.errors import FormatError
from subsecond.graph.graph import Graph
from subsecond.graph.ops import (
    Add,
    Attention,
    Embed,
    GatedActivation,
    Linear,
    Norm,
    Op,
    RmsNorm,
    Rope,
    Rotary,
    Rows,
    SelectRows,
    Value,
)


class GraphBuilder:
    """Collects operators; every method returns the name of the value that it computes.

    `shapes` holds the shapes of the file's weights: (out, in) or (length,). A weight that is missing or of another
    shape than the family's config says is a FormatError that names it.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = shapes
        self._ops: list[Op] = []
        self._values: dict[str, Value] = {}
        self._weights: dict[str, tuple[int, ...]] = {}

    def has(self, weight: str) -> bool:
        """Whether the file has a weight of this name."""
        return weight in self._shapes

    def embed(self, output: str, weight: str, vocab_size: int, width: int) -> str:
        """Rows of the embedding table; weight [vocab_size, width]."""
        self._weight(weight, (vocab_size, width))
        return self._emit(Embed(output, weight), width)

    def linear(self, output: str, source: str, weight: str, width: int, *, bias: str | None = None) -> str:
        """source @ weight.T (+ bias); weight [width, width of source]."""
        self._weight(weight, (width, self._values[source].width))
        if bias is not None:
            self._weight(bias, (width,))
        return self._emit(Linear(output, source, (weight,), (bias,)), width, self._values[source].rows)

    def rms_norm(self, output: str, source: str, weight: str, eps: float) -> str:
        """RMS norm with a scale per channel; weight [width of source]."""
        width = self._values[source].width
        self._weight(weight, (width,))
        return self._emit(RmsNorm(output, source, Norm(weight, eps)), width, self._values[source].rows)

    def rope(self, output: str, source: str, head_dim: int, rotary: Rotary) -> str:
        """Rotate heads by position."""
        if rotary.frequency_factors:
            self._weight(rotary.frequency_factors, (rotary.dims // 2,))
        return self._emit(Rope(output, source, head_dim, rotary), self._values[source].width)

    def attention(
        self,
        output: str,
        query: str,
        key: str,
        value: str,
        *,
        layer: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
    ) -> str:
        """Grouped causal attention with scale head_dim ** -0.5."""
        op = Attention(output, query, key, value, layer, num_heads, num_kv_heads, head_dim, head_dim**-0.5)
        return self._emit(op, num_heads * head_dim)

    def gated_activation(self, output: str, gate: str, up: str, activation: str) -> str:
        """activation(gate) * up."""
        return self._emit(GatedActivation(output, gate, up, activation), self._values[gate].width)

    def add(self, output: str, left: str, right: str) -> str:
        """left + right."""
        return self._emit(Add(output, left, right), self._values[left].width)

    def select_rows(self, output: str, source: str) -> str:
        """Keep the rows whose logits were asked for."""
        return self._emit(SelectRows(output, source), self._values[source].width, "selected")

    def build(self, output: str) -> Graph:
        """The finished graph, checked."""
        values, weights = MappingProxyType(dict(self._values)), MappingProxyType(dict(self._weights))
        graph = Graph(tuple(self._ops), values, weights, output)
        graph.check()
        return graph

    def _emit(self, op: Op, width: int, rows: Rows = "all") -> str:
        self._ops.append(op)
        self._values[op.output] = Value(op.output, width, rows)
        return op.output

    def _weight(self, name: str, shape: tuple[int, ...]) -> None:
        given = self._shapes.get(name)
        if given is None:
            raise FormatError(f"the model file has no tensor {name!r}, which its family needs with shape {shape}")
        if tuple(given) != shape:
            raise FormatError(f"tensor {name!r} has shape {tuple(given)}; the model's configuration asks for {shape}")
        self._weights[name] = shape
