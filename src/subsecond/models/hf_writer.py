"""Writes a model as a Hugging Face folder, one weight in memory at a time: config.json, safetensors and tokenizer.

Quantized weights are stored as compressed-tensors has them (see `compressed_parts`), so that `hf_folder` reads back the
very blocks that were put, and other engines load them too. What was read from is not changed.
"""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from subsecond.core.errors import FormatError, UnsupportedError
from subsecond.formats.gguf_types import BLOCK_LAYOUTS, TensorType
from subsecond.formats.safetensors_writer import MAX_FILE_BYTES, SafetensorsWriter
from subsecond.formats.whole_folder import write_folder
from subsecond.models import rope_tensors
from subsecond.models.checkpoint import Checkpoint
from subsecond.models.compressed_config import CompressedConfig
from subsecond.models.compressed_parts import PLAIN_TYPES, PackScheme, Parts, pack, pack_channels, to_plain
from subsecond.models.config import ModelConfig
from subsecond.models.config_hf import CONFIG_NAME
from subsecond.models.families.registry import build_graph, find_family
from subsecond.models.hf_config_writer import Tokens, change_tokens
from subsecond.models.hf_folder import HfFolder
from subsecond.models.hf_names import NameTable
from subsecond.models.hf_source import VOCABULARY_FILES, SideFile, find_template
from subsecond.models.readings import SECTION
from subsecond.models.row_order import has_rotated_rows, reorder_rows
from subsecond.models.tokenizer import Tokenizer
from subsecond.models.tokenizer_writer import tokenizer_files
from subsecond.models.weights import StoredTensor

_TABLES = frozenset({"token_embd", "position_embd", "token_types"})
_HEAD = "output"
_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
_log = logging.getLogger(__name__)


class CheckpointWriter:
    """Writes a model that was made from `source` into `folder`. A context manager: complete at its end.

    When an exception leaves it, nothing of it stays. A folder that is there is an InputError, unless it is empty or
    `can_replace`. Until the end these may be set:

    config      of the model that is written; `config.rope_pairing` says how the rows of what is put are ordered
    readings    how weights are executed, by name, "default" for others (see `models.readings`); at first the source's
    side_files  content of the files beside the weights, tokenizer included, by name; those of the source at first

    has_plain_tables   embedding tables and the head are decoded, for engines that read them no other way
    has_int8_linears   linears of layers are written as int8 with a scale for each output, to be run with rows of
                       activations in int8
    """

    def __init__(
        self,
        folder: Path,
        source: Checkpoint,
        *,
        can_replace: bool = False,
        has_plain_tables: bool = False,
        has_int8_linears: bool = False,
        max_file_bytes: int = MAX_FILE_BYTES,
    ) -> None:
        self.config: ModelConfig = source.config
        self.readings: dict[str, str] = dict(source.readings)
        self._template = find_template(source)
        self._chat_template = source.chat_template_source
        self._tokens: Tokens | None = None  # of a tokenizer that is not the source's
        self.side_files: dict[str, SideFile] = dict(self._template.side_files)
        self._folder, self._can_replace, self._max_file_bytes = folder, can_replace, max_file_bytes
        self._has_plain_tables, self._has_int8_linears = has_plain_tables, has_int8_linears
        self._family = find_family(source.config.family)
        self._names = NameTable(self._family)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._factors: dict[str, NDArray[np.float32]] = {}
        self._compressed = CompressedConfig()
        self._num_bytes: Counter[str] = Counter()  # of plain matrices, by type
        self._decoded: Counter[str] = Counter()
        self._stack = ExitStack()

    def __enter__(self) -> CheckpointWriter:
        self._partial = self._stack.enter_context(write_folder(self._folder, can_replace=self._can_replace))
        self._file = SafetensorsWriter(self._partial, max_file_bytes=self._max_file_bytes)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        except BaseException:
            self._leave(*sys.exc_info())
            raise
        self._leave(kind, error, traceback)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights so far."""
        return dict(self._shapes)

    @property
    def notes(self) -> list[str]:
        """What is not stored as it was put, as sentences."""
        return [
            f"{count} weights of type {type_name} are decoded to half precision, as compressed-tensors or its readers "
            "have no form for them"
            for type_name, count in sorted(self._decoded.items())
        ]

    def put(self, name: str, tensor: StoredTensor) -> None:
        """Add a weight under the name that graphs use, in its place in a graph of `config.rope_pairing`.

        Raises UnsupportedError for a weight that checkpoints of the family do not have, and FormatError for one whose
        bytes do not fit its shape.
        """
        assert name not in self._shapes, f"weight {name!r} was put before"
        _check(name, tensor)
        if name in rope_tensors.NAMES:
            self._factors[name] = tensor.dequantize().reshape(-1)
            return
        self._shapes[name] = tensor.shape
        if has_rotated_rows(name):
            tensor = reorder_rows(tensor, self.config, "half")
        if name.endswith("_norm.weight") and self._family.has_unit_norms:
            tensor = _less_one(tensor)
        module = self._names.module_of(name)
        if module is not None:
            self._put(name, module, tensor)
            return
        for expert in range(tensor.shape[0] if len(tensor.shape) == 3 else 0):
            module = self._names.module_of(name, expert)
            if module is not None:
                self._put(name, module, _expert(tensor, expert))
        if module is None:
            raise UnsupportedError(
                f"weight {name!r} has no name in Hugging Face checkpoints of family {self._family.names[0]!r}"
            )

    def put_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Write another tokenizer in place of the source's, with the ids that engines look for in config.json."""
        for name in VOCABULARY_FILES:
            self.side_files.pop(name, None)
        self.side_files |= tokenizer_files(tokenizer, self._chat_template, self.config.context_length)
        self._tokens = Tokens(tokenizer.bos_id, tokenizer.eos_ids)

    def _put(self, name: str, module: str, tensor: StoredTensor) -> None:
        ours, _, part = name.rpartition(".")
        is_matrix = part == "weight" and len(tensor.shape) == 2
        is_table = ours in _TABLES
        if is_matrix and self._family.has_transposed_linears and not is_table and ours != _HEAD:
            tensor = _transposed(name, tensor)
        packed = self._pack(ours, tensor) if is_matrix else None
        if packed is not None:
            scheme, parts = packed
            for key, each in parts.items():
                self._file.add(f"{module}.{key}", each.dtype, each.shape, each.data)
        else:
            if tensor.type not in PLAIN_TYPES:
                self._decoded[tensor.type.name] += 1
                tensor = to_plain(tensor)
            self._num_bytes[tensor.type.name] += tensor.raw.nbytes if is_matrix else 0
            self._file.add(f"{module}.{part}", tensor.type.name, tensor.shape, tensor.raw)
        if is_matrix and not is_table:
            self._compressed.add_linear(module, packed[0] if packed else None)
        elif packed is not None:
            self._compressed.add_table(module, scheme)

    def _pack(self, ours: str, tensor: StoredTensor) -> tuple[PackScheme, Parts] | None:
        """The parts of a matrix, None where it stays or becomes plain."""
        if ours in _TABLES or ours == _HEAD:
            return None if self._has_plain_tables else pack(tensor)
        if self._has_int8_linears and not ours.endswith("_inp"):  # not those that choose experts
            return pack_channels(tensor.dequantize())
        return pack(tensor, has_five_bits=not self._has_plain_tables)

    def _leave(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
        self._stack.__exit__(kind, error, traceback)

    def _finish(self) -> None:
        """Write what stands beside the weights, and read all of it back."""
        config = rope_tensors.with_factors(self.config, self._factors)
        build_graph(config, self._shapes)  # all weights of the model are there, in the shapes that it says
        is_tied = config.pooling is None and "output.weight" not in self._shapes
        content = self._template.make_config(config, self._shapes)
        if self._tokens is not None:
            change_tokens(content, self._tokens)
        content["torch_dtype"] = self._dtype(content)
        content.pop("dtype", None)
        if not self._compressed.is_empty:
            head = self._names.module_of("output.weight") if is_tied else None
            content["quantization_config"] = self._compressed.to_json([head] if head else [])
        if self.readings:
            content[SECTION] = {"readings": dict(sorted(self.readings.items()))}
        text = json.dumps(content, ensure_ascii=False, indent=2) + "\n"
        (self._partial / CONFIG_NAME).write_text(text, encoding="utf-8")
        for name, side in self.side_files.items():
            place = self._partial / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(side if isinstance(side, bytes) else side.read_bytes())
        for note in self.notes:
            _log.info("%s", note)
        self._file.finish()
        found = HfFolder(self._partial)
        assert dict(found.shapes) == self._shapes, "the folder reads back with other weights"

    def _dtype(self, content: dict[str, object]) -> str:
        """The type that other engines compute in: one that holds the scales, which are float16."""
        given = content.get("torch_dtype", content.get("dtype"))
        if not self._compressed.is_empty and not self._family.exceeds_half:
            return "float16"
        if isinstance(given, str):
            return given
        if self._family.exceeds_half:
            return "bfloat16"
        return _DTYPES[self._num_bytes.most_common(1)[0][0]] if self._num_bytes else "float16"


def _check(name: str, tensor: StoredTensor) -> None:
    layout = BLOCK_LAYOUTS[tensor.type]
    num_rows, width = int(np.prod(tensor.shape[:-1], dtype=np.int64)), tensor.shape[-1]
    if width % layout.num_elements or tensor.raw.nbytes != num_rows * width // layout.num_elements * layout.num_bytes:
        raise FormatError(
            f"weight {name!r} of shape {tensor.shape} and type {tensor.type.name} has {tensor.raw.nbytes} bytes, "
            f"which do not fit; {layout.num_elements} elements of a row take {layout.num_bytes}"
        )


def _less_one(tensor: StoredTensor) -> StoredTensor:
    """The weight of a norm as its checkpoints store it, as bfloat16 where that is exact."""
    bits = np.ascontiguousarray(tensor.dequantize() - np.float32(1)).view("<u4")
    if not (bits & np.uint32(0xFFFF)).any():
        return StoredTensor(TensorType.BF16, tensor.shape, (bits >> np.uint32(16)).astype("<u2").view(np.uint8))
    return StoredTensor(TensorType.F32, tensor.shape, bits.view(np.uint8))


def _expert(tensor: StoredTensor, expert: int) -> StoredTensor:
    rows = tensor.raw.reshape(tensor.shape[0], -1)
    return StoredTensor(tensor.type, tensor.shape[1:], rows[expert])


def _transposed(name: str, tensor: StoredTensor) -> StoredTensor:
    if tensor.type not in PLAIN_TYPES:
        raise UnsupportedError(
            f"weight {name!r} is of type {tensor.type.name}; checkpoints of this family store linears by inputs, which "
            "quantized weights cannot be. Supported are F32, F16 and BF16"
        )
    kind = np.uint32 if tensor.type is TensorType.F32 else np.uint16
    matrix = np.ascontiguousarray(tensor.raw).view(kind).reshape(tensor.shape)
    return StoredTensor(tensor.type, tensor.shape[::-1], np.ascontiguousarray(matrix.T).reshape(-1).view(np.uint8))
