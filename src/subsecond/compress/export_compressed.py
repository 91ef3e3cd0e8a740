"""Exports a model as a Hugging Face folder that other engines load: plain tables, weights as compressed-tensors."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from subsecond.compress.export import ExportResult, Progress, reading_notes, size_of, stored_weights
from subsecond.formats.safetensors import Safetensors
from subsecond.models.checkpoint import Checkpoint
from subsecond.models.config_hf import CONFIG_NAME
from subsecond.models.hf_writer import CheckpointWriter

_INT8_NOTE = (
    "linears are int8 with a scale for each output, to be run with rows of activations in int8; they are unrotated, so "
    "this loses more than our own int8, which rotates them"
)


def export_compressed(source: Checkpoint, folder: Path, progress: Progress, *, has_int8: bool) -> ExportResult:
    """Write the model into `folder`; with `has_int8` its linears as W8A8, otherwise as they are stored.

    Embedding tables and the head are decoded to half precision: transformers and vLLM read no other.

    Raises:
        InputError: the folder is there already.
        UnsupportedError: transformers has no class for the model.
    """
    with CheckpointWriter(folder, source, has_plain_tables=True, has_int8_linears=has_int8) as sink:
        sink.readings = {}
        for name, tensor in stored_weights(source, progress):
            sink.put(name, tensor)
    notes = [*([_INT8_NOTE] if has_int8 else []), *sink.notes]
    notes += reading_notes(source, "the folder")
    types = Counter(_dtypes(Safetensors.open_folder(folder)))
    section = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8")).get("quantization_config", {})
    name = section.get("format", "dense")
    return ExportResult(f"compressed-tensors ({name})", folder, size_of(folder), dict(types), tuple(notes))


def _dtypes(tensors: Safetensors) -> Iterable[str]:
    return (tensor.dtype for name, tensor in tensors.tensors.items() if not name.endswith(("_scale", "_shape")))
