"""Exports a model as a folder with an ONNX graph from token ids to logits, for whole texts, and its tokenizer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from subsecond.compress.export import ExportResult, Progress, reading_notes, size_of
from subsecond.core.errors import UnsupportedError
from subsecond.formats.gguf_types import TensorType, dequantize
from subsecond.formats.whole_folder import write_folder
from subsecond.models.checkpoint import Checkpoint
from subsecond.models.config import ModelConfig
from subsecond.models.families.registry import build_graph
from subsecond.models.hf_source import find_template
from subsecond.models.row_order import has_rotated_rows, reorder_rows
from subsecond.models.weights import StoredTensor, WeightSource

try:
    import onnx
except ImportError as error:
    raise UnsupportedError(
        "an ONNX graph is written with the package onnx, which is not installed; install it with: "
        "pip install 'subsecond[export]'"
    ) from error

from subsecond.compress.onnx_graph import INPUT, OnnxGraph
from subsecond.compress.onnx_nodes import NodeList
from subsecond.compress.onnx_weights import DATA_NAME, OnnxWeights, exported_bytes

MODEL_NAME = "model.onnx"
MAX_INNER_BYTES = 1_500_000_000
"""Of weights in model.onnx itself, which must stay below 2 GiB; more of them lie in a file beside it."""
_NOTE = "the graph computes whole texts, without a cache of keys and values; batches hold texts of one length"


def export_onnx(
    source: Checkpoint, folder: Path, progress: Progress, *, max_inner_bytes: int = MAX_INNER_BYTES
) -> ExportResult:
    """Write the model into `folder`: model.onnx, its weights beside it where they are large, and the tokenizer.

    The input is int64 `input_ids` [batch, sequence]; the output float32 `logits` [batch, sequence, vocabulary], or
    `hidden` for an embedding model.

    Raises:
        InputError: the folder is there already.
        UnsupportedError: the model has experts, or only packed weights are at hand.
    """
    config = replace(source.config, rope_pairing="half")
    graph = build_graph(config, source.shapes)
    nodes, weights_read = NodeList(config.name), _HalfOrder(source.weights, source.config)
    output = "logits" if config.pooling is None else "hidden"
    side_files = find_template(source).side_files
    with write_folder(folder) as partial, ExitStack() as stack:
        is_large = _weight_bytes(source) > max_inner_bytes
        data: IO[bytes] | None = stack.enter_context((partial / DATA_NAME).open("wb")) if is_large else None
        weights = OnnxWeights(nodes, weights_read, data)
        writer = OnnxGraph(graph, nodes, weights, lambda name: source.weights.dequantize(name).reshape(-1))
        for done, op in enumerate(graph.ops):
            progress(done, len(graph.ops))
            writer.write(op, output if op.output == graph.output else None)
            source.weights.release()
        nodes.declare(*_ends(output, graph.values[graph.output].width))
        onnx.save_model(nodes.model, partial / MODEL_NAME)
        for name, side in side_files.items():
            if "/" not in name:
                (partial / name).write_bytes(side if isinstance(side, bytes) else side.read_bytes())
    progress(len(graph.ops), len(graph.ops))
    decoded = ", ".join(f"{count} {name}" for name, count in sorted(weights.decoded.items()) if count)
    notes = [_NOTE, *([f"weights of these types are decoded to half precision: {decoded}"] if decoded else [])]
    notes += reading_notes(source, "an ONNX graph")
    return ExportResult("onnx", folder, size_of(folder), dict(weights.types), tuple(notes))


def _ends(output: str, width: int) -> tuple[onnx.ValueInfoProto, onnx.ValueInfoProto]:
    """What goes in and what comes out, of any batch and length."""
    describe, sizes = onnx.helper.make_tensor_value_info, ("batch", "sequence")
    return (
        describe(INPUT, onnx.TensorProto.INT64, sizes),
        describe(output, onnx.TensorProto.FLOAT, (*sizes, width)),
    )


def _weight_bytes(source: Checkpoint) -> int:
    """Bytes of the weights in the graph; a table that is the head too may be there twice."""
    total = 0
    for name, shape in source.shapes.items():
        count = 2 if name == "token_embd.weight" and "output.weight" not in source.shapes else 1
        total += count * exported_bytes(source.weights.type_of(name), math.prod(shape))
    return total


class _HalfOrder:
    """The weights of a model with the rows of rotated heads in the order "half". Implements `WeightSource`."""

    def __init__(self, weights: WeightSource, config: ModelConfig) -> None:
        self._weights = weights
        self._config = config

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self._weights.shapes

    def type_of(self, name: str) -> TensorType:
        return self._weights.type_of(name)

    def raw(self, name: str) -> NDArray[np.uint8]:
        raw = self._weights.raw(name)
        if not has_rotated_rows(name):
            return raw
        return reorder_rows(StoredTensor(self.type_of(name), self.shapes[name], raw), self._config, "half").raw

    def dequantize(self, name: str) -> NDArray[np.float32]:
        return dequantize(self.type_of(name), self.raw(name), self.shapes[name])

    def release(self) -> None:
        self._weights.release()
