"""Weights as pruning stores them: half precision where values changed, stored rows as they are where some only go."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from subsecond.compress.importance import Indices
from subsecond.compress.statistics import Floats
from subsecond.formats.gguf_types import TensorType
from subsecond.models.weights import StoredTensor

_MAX_HALF = 65504.0


def as_half(value: Floats | Tensor) -> StoredTensor:
    """A matrix in float16, in float32 where it has values beyond float16; anything with one axis in float32."""
    array = value.numpy() if isinstance(value, Tensor) else value
    fits = array.ndim > 1 and float(np.abs(array).max(initial=0.0)) <= _MAX_HALF
    kind, dtype = (TensorType.F16, "<f2") if fits else (TensorType.F32, "<f4")
    raw = np.ascontiguousarray(array.astype(dtype)).view(np.uint8).reshape(-1)
    return StoredTensor(kind, tuple(array.shape), raw)


def keep_rows(tensor: StoredTensor, rows: Indices) -> StoredTensor:
    """Some rows of a stored weight, blocks and all, so that nothing is rounded again; entries of one with one axis."""
    kept = np.ascontiguousarray(tensor.raw).reshape(tensor.shape[0], -1)[rows]
    return StoredTensor(tensor.type, (len(rows), *tensor.shape[1:]), np.ascontiguousarray(kept).reshape(-1))


def widened(value: Floats, kept: Indices, num_inputs: int) -> Floats:
    """A matrix [out, kept] with its columns where they were, float32 [out, num_inputs], zeros between them."""
    wide = np.zeros((len(value), num_inputs), np.float32)
    wide[:, kept] = value
    return wide
