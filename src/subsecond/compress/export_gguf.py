"""Exports a model as a GGUF file, its blocks as they are; what GGUF has no key for is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np

from subsecond.compress.export import ExportResult, Progress, reading_notes, size_of, stored_weights
from subsecond.core.errors import UnsupportedError
from subsecond.formats.gguf import GgufFile
from subsecond.formats.gguf_metadata import StringArray
from subsecond.formats.gguf_types import TensorType
from subsecond.formats.gguf_writer import GgufWriter, Value
from subsecond.models.checkpoint import Checkpoint
from subsecond.models.config import ModelConfig
from subsecond.models.config_gguf_writer import gguf_metadata
from subsecond.models.families.registry import find_family
from subsecond.models.rope_tensors import factor_tensors
from subsecond.models.row_order import has_rotated_rows, reorder_rows
from subsecond.models.vocabulary_gguf_writer import gguf_vocabulary

Tensors = dict[str, tuple[TensorType, tuple[int, ...]]]
# llama_ftype of llama.cpp: what readers show as the type of the whole file
_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K": 12,
               "Q4_K": 15, "Q5_K": 17, "Q6_K": 18, "IQ4_NL": 25, "IQ4_XS": 30, "BF16": 32, "MXFP4": 38}  # fmt: skip


def export_gguf(source: Checkpoint, path: Path, progress: Progress) -> ExportResult:
    """Write the model into one file at `path`.

    Raises:
        InputError: there is a file already.
        UnsupportedError: GGUF cannot say the configuration or the vocabulary, or holds no such weights.
    """
    family = find_family(source.config.family)
    plain, factors = factor_tensors(source.config)
    config = replace(plain, rope_pairing=family.gguf_pairing)
    tensors: Tensors = {name: (TensorType.F32, array.shape) for name, array in factors.items()}
    for name, shape in source.shapes.items():
        # ggml adds and multiplies vectors in float32 only
        tensors[name] = (TensorType.F32 if len(shape) == 1 else source.weights.type_of(name), shape)
    metadata = {
        **gguf_metadata(config, {name: shape for name, (_, shape) in tensors.items()}),
        "general.file_type": _file_type(tensors),
        "general.quantization_version": 2,
        **_vocabulary(source, config),
    }
    with GgufWriter(path, metadata, tensors) as writer:
        for name, values in factors.items():
            writer.add(name, values.astype("<f4").view(np.uint8))
        for name, tensor in stored_weights(source, progress):
            if has_rotated_rows(name):
                tensor = reorder_rows(tensor, source.config, family.gguf_pairing)
            is_as_stored = tensor.type is tensors[name][0]
            writer.add(name, tensor.raw if is_as_stored else tensor.dequantize().reshape(-1).view(np.uint8))
    types = Counter(kind.name for kind, _ in tensors.values())
    return ExportResult("gguf", path, size_of(path), dict(types), reading_notes(source, "a GGUF file"))


def _file_type(tensors: Tensors) -> int:
    sizes: Counter[str] = Counter()
    for kind, shape in tensors.values():
        sizes[kind.name] += int(np.prod(shape, dtype=np.int64)) if len(shape) > 1 else 0
    (name, _), *_ = sizes.most_common(1) or [("F32", 0)]
    return _FILE_TYPES.get(name, 0)


def _vocabulary(source: Checkpoint, config: ModelConfig) -> Mapping[str, Value]:
    """The keys of the vocabulary: those of the source where it is a GGUF file too."""
    if source.path.is_dir():
        found = gguf_vocabulary(source.tokenizer, config.vocab_size)
        if source.chat_template_source is not None:
            found["tokenizer.chat_template"] = source.chat_template_source
        return found
    metadata = GgufFile.open(source.path).metadata
    copied: dict[str, Value] = {}
    for key in metadata:
        if key.startswith("tokenizer."):
            value = metadata[key]
            if isinstance(value, StringArray):
                value = list(value)
            if not isinstance(value, bool | int | float | str | list):
                raise UnsupportedError(
                    f"the key {key!r} of the vocabulary is {type(value).__name__}, which is not copied"
                )
            copied[key] = cast("Value", value)
    return copied
