"""Builds an ONNX model in place, node by node under names that are made here; knows nothing of language models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

OPSET = 21
"""The first with integers of four bits, and scales for blocks of a weight."""
IR_VERSION = 10


class NodeList:
    """The nodes of `model` in order; values are named after the operator that gives them and a number."""

    def __init__(self, name: str) -> None:
        opsets = [helper.make_opsetid("", OPSET)]
        graph = helper.make_graph([], name, [], [])
        self.model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="subsecond")
        self._count = 0
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def add(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Add a node with one output and return its name."""
        self._count += 1
        output = output or f"{kind.lower()}_{self._count}"
        name = f"{kind}_{self._count}"
        self.model.graph.node.append(helper.make_node(kind, list(inputs), [output], name=name, **attributes))
        return output

    def constant(self, values: NDArray[np.generic]) -> str:
        """A small constant, shared by all who ask for the same."""
        key = (str(values.dtype), values.shape, values.tobytes())
        if key not in self._constants:
            self._constants[key] = name = f"constant_{len(self._constants)}"
            self.model.graph.initializer.append(numpy_helper.from_array(values, name))
        return self._constants[key]

    def add_initializer(self, name: str, kind: int, shape: Sequence[int]) -> onnx.TensorProto:
        """A weight of the model, whose bytes the caller puts in: a large one is not to be copied."""
        tensor: onnx.TensorProto = self.model.graph.initializer.add()
        tensor.name, tensor.data_type = name, kind
        tensor.dims.extend(shape)
        return tensor

    def declare(self, inputs: onnx.ValueInfoProto, output: onnx.ValueInfoProto) -> None:
        """Say what the model is given and gives."""
        self.model.graph.input.append(inputs)
        self.model.graph.output.append(output)
