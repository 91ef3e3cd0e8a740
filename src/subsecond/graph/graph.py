"""A graph: operators in execution order, the values between them and the weights they read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from subsecond.graph.ops import Op, Value, inputs_of, weights_of


@dataclass(frozen=True, slots=True)
class Graph:
    """Operators in an order in which every input is computed before it is read.

    `weights` maps the name of each weight to its shape (out, in), or (length,) for vectors. `output` names the logits.
    """

    ops: tuple[Op, ...]
    values: Mapping[str, Value]
    weights: Mapping[str, tuple[int, ...]]
    output: str

    def readers(self) -> dict[str, list[int]]:
        """Indices of the operators that read each value."""
        found: dict[str, list[int]] = {name: [] for name in self.values}
        for index, op in enumerate(self.ops):
            for name in inputs_of(op):
                found[name].append(index)
        return found

    def with_ops(self, ops: Iterable[Op], added: Iterable[Value] = ()) -> Graph:
        """The same graph with other operators; values that nothing computes any more are dropped. Checked."""
        ops = tuple(ops)
        computed = {op.output for op in ops}
        values = {v.name: v for v in (*self.values.values(), *added) if v.name in computed}
        graph = replace(self, ops=ops, values=MappingProxyType(values))
        graph.check()
        return graph

    def check(self) -> None:
        """Assert what every pass must keep: single assignment, inputs before readers, known weights."""
        computed: set[str] = set()
        for op in self.ops:
            for name in inputs_of(op):
                assert name in computed, f"{type(op).__name__} {op.output!r} reads {name!r} before it is computed"
            for name in weights_of(op):
                assert name in self.weights, f"{type(op).__name__} {op.output!r} reads unknown weight {name!r}"
            assert op.output not in computed, f"value {op.output!r} is computed twice"
            assert op.output in self.values, f"value {op.output!r} is not declared"
            computed.add(op.output)
        assert self.output in computed, f"the output {self.output!r} is never computed"
