"""Gathers the nodes and constants of an ONNX graph under names that are made here; knows nothing of models."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

OPSET = 21
"""The first with integers of four bits, and scales for blocks of a weight."""
IR_VERSION = 10


class NodeList:
    """The nodes of a graph in order. A value is named after what it is, with a number where that is not unique."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._count = 0
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def add(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Add a node with one output and return its name."""
        self._count += 1
        output = output or f"{kind.lower()}_{self._count}"
        name = f"{kind}_{self._count}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=name, **attributes))
        return output

    def constant(self, values: NDArray[np.generic]) -> str:
        """A small constant, shared by all who ask for the same."""
        key = (str(values.dtype), values.shape, values.tobytes())
        if key not in self._constants:
            self._constants[key] = name = f"constant_{len(self._constants)}"
            self.initializers.append(numpy_helper.from_array(values, name))
        return self._constants[key]
