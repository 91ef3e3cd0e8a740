"""The weights of an ONNX graph, quantized ones as integers with scales; inside of the file or in one beside it.

A linear is MatMul with the weight [inputs, outputs]. What a stored type becomes:

    F32, F16, BF16   the same, cast to float32 where it is used
    Q8_0, Q4_0       int8 or int4 behind DequantizeLinear, with a scale for 32 inputs; exact
    Q4_1             uint4 likewise; the minimums are a second product, with the sums of groups of inputs
    Q5_0, IQ4_NL     as Q8_0, which is exact too
    others           float16, rounded
"""

from __future__ import annotations

from collections import Counter
from typing import IO

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from subsecond.compress.onnx_nodes import NodeList
from subsecond.formats.gguf_types import BLOCK_LAYOUTS, TensorType
from subsecond.models.compressed_parts import BYTE_TYPES, as_q8_0, to_plain
from subsecond.models.weights import StoredTensor, WeightSource

DATA_NAME = "model.onnx.data"
_ALIGNMENT = 4096
_GROUP = 32
_PLAIN = {TensorType.F32: TensorProto.FLOAT, TensorType.F16: TensorProto.FLOAT16, TensorType.BF16: TensorProto.BFLOAT16}
_CODES = {TensorType.Q8_0: TensorProto.INT8, TensorType.Q4_0: TensorProto.INT4, TensorType.Q4_1: TensorProto.UINT4}


def exported_bytes(kind: TensorType, num_elements: int) -> int:
    """Bytes that a matrix of this type takes in the graph."""
    if kind in _PLAIN:
        return num_elements * BLOCK_LAYOUTS[kind].num_bytes
    if kind in (TensorType.Q4_0, TensorType.Q4_1):
        return num_elements // 2 + num_elements // _GROUP * 6
    return num_elements * 9 // 8 if kind in (TensorType.Q8_0, *BYTE_TYPES) else 2 * num_elements


class OnnxWeights:
    """Adds weights of `source` to the nodes that need them.

    `data` is the open file beside the model that holds their bytes; None to hold them in the model itself.
    """

    def __init__(self, nodes: NodeList, source: WeightSource, data: IO[bytes] | None) -> None:
        self._nodes = nodes
        self._source = source
        self._data = data
        self._shared: dict[str, str] = {}
        self.types: Counter[str] = Counter()
        self.decoded: Counter[str] = Counter()

    def vector(self, name: str) -> str:
        """A vector, or a table, as float32."""
        if name not in self._shared:
            self._shared[name] = self._store(name, self._source.dequantize(name))
        return self._shared[name]

    def rows(self, name: str, indices: str) -> str:
        """The rows [..., width] of a table at these indices, as float32."""
        tensor = self._read(name)
        if tensor.type is not TensorType.Q8_0:
            return self._nodes.add("Cast", self._nodes.add("Gather", self._table(name), indices), to=TensorProto.FLOAT)
        width = tensor.shape[1]
        blocks = tensor.raw.reshape(tensor.shape[0], width // _GROUP, 34)
        codes = np.ascontiguousarray(blocks[..., 2:]).view(np.int8)
        scales = np.ascontiguousarray(blocks[..., :2]).view("<f2").astype(np.float32)
        stored = self._store(f"{name}.row_codes", codes), self._store(f"{name}.row_scales", scales)
        self.types[tensor.type.name] += 1
        found = [self._nodes.add("Gather", each, indices) for each in stored]
        values = self._nodes.add("Mul", self._nodes.add("Cast", found[0], to=TensorProto.FLOAT), found[1])
        return self._nodes.add("Reshape", values, self._nodes.constant(np.array([0, 0, width], np.int64)))

    def product(self, name: str, x: str, *, is_table: bool) -> str:
        """x [..., inputs] times the transposed weight; `is_table` for one whose rows are looked up too."""
        tensor = self._read(name)
        if tensor.type in _CODES:
            return self._quantized(name, tensor, x)
        if is_table:
            weight = self._nodes.add("Transpose", self._cast(self._table(name)), perm=[1, 0])
        else:
            plain = self._plain(tensor)
            values = _elements(plain).T
            weight = self._cast(self._store(name, np.ascontiguousarray(values), _PLAIN[plain.type]))
        return self._nodes.add("MatMul", x, weight)

    def _quantized(self, name: str, tensor: StoredTensor, x: str) -> str:
        outputs, inputs = tensor.shape
        num_groups = inputs // _GROUP
        blocks = tensor.raw.reshape(outputs, num_groups, BLOCK_LAYOUTS[tensor.type].num_bytes)
        scales = np.ascontiguousarray(blocks[..., :2]).view("<f2")[..., 0].astype(np.float32)
        codes = _codes(tensor.type, blocks).reshape(outputs, inputs).T
        packed = np.ascontiguousarray(codes) if tensor.type is TensorType.Q8_0 else _pack_nibbles(codes)
        weight = self._nodes.add(
            "DequantizeLinear",
            self._store(f"{name}.codes", packed, _CODES[tensor.type], (inputs, outputs)),
            self._store(f"{name}.scales", np.ascontiguousarray(scales.T)),
            axis=0,
            block_size=_GROUP,
        )
        self.types[tensor.type.name] += 1
        result = self._nodes.add("MatMul", x, weight)
        if tensor.type is not TensorType.Q4_1:
            return result
        minimums = np.ascontiguousarray(blocks[..., 2:4]).view("<f2")[..., 0].T
        grouped = self._nodes.add("Reshape", x, self._nodes.constant(np.array([0, 0, num_groups, _GROUP], np.int64)))
        sums = self._nodes.add("ReduceSum", grouped, self._nodes.constant(np.array([-1], np.int64)), keepdims=0)
        lows = self._cast(self._store(f"{name}.minimums", np.ascontiguousarray(minimums)))
        return self._nodes.add("Add", result, self._nodes.add("MatMul", sums, lows))

    def _table(self, name: str) -> str:
        if name not in self._shared:
            plain = self._plain(self._read(name))
            self._shared[name] = self._store(name, _elements(plain), _PLAIN[plain.type])
        return self._shared[name]

    def _plain(self, tensor: StoredTensor) -> StoredTensor:
        plain = to_plain(tensor)
        self.decoded[tensor.type.name] += plain is not tensor
        self.types[plain.type.name] += 1
        return plain

    def _read(self, name: str) -> StoredTensor:
        source = self._source
        return as_q8_0(StoredTensor(source.type_of(name), source.shapes[name], source.raw(name)))

    def _cast(self, name: str) -> str:
        return self._nodes.add("Cast", name, to=TensorProto.FLOAT)

    def _store(
        self, name: str, values: NDArray[np.generic], kind: int | None = None, shape: tuple[int, ...] | None = None
    ) -> str:
        """Add an initializer; `kind` and `shape` where those of the array are others, as with packed codes."""
        kind = onnx.helper.np_dtype_to_tensor_dtype(values.dtype) if kind is None else kind
        tensor = self._nodes.add_initializer(name, kind, shape or values.shape)
        raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        if self._data is None:
            tensor.raw_data = raw.tobytes()
        else:
            self._data.write(bytes(-self._data.tell() % _ALIGNMENT))
            place = {"location": DATA_NAME, "offset": str(self._data.tell()), "length": str(raw.nbytes)}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=value)
            tensor.data_location = TensorProto.EXTERNAL
            self._data.write(raw.data)
        return name


def _elements(tensor: StoredTensor) -> NDArray[np.generic]:
    """A plain weight in its shape; bfloat16 as its bits."""
    return tensor.raw.view({TensorType.F32: "<f4", TensorType.F16: "<f2", TensorType.BF16: "<u2"}[tensor.type]).reshape(
        tensor.shape
    )


def _codes(kind: TensorType, blocks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The codes [outputs, groups, 32] as ONNX has them: signed for Q8_0 and Q4_0, those as two's complement."""
    if kind is TensorType.Q8_0:
        return np.ascontiguousarray(blocks[..., 2:])
    nibbles = blocks[..., 2 if kind is TensorType.Q4_0 else 4 :]
    codes = np.concatenate([nibbles & np.uint8(15), nibbles >> np.uint8(4)], axis=-1)
    return codes ^ np.uint8(8) if kind is TensorType.Q4_0 else codes  # as two's complement, that takes 8 away


def _pack_nibbles(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """All elements in C order, two in a byte, the first one low."""
    flat = np.ascontiguousarray(codes).reshape(-1)
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    packed: NDArray[np.uint8] = flat[0::2] | (flat[1::2] << np.uint8(4))
    return packed
