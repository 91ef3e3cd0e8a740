"""Logits of a model on disk by the torch reference, for tests that compare what is written with what was read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from subsecond.backends.batch import Float32, ForwardBatch
from subsecond.backends.torch import TorchBackend
from subsecond.models.checkpoint import Checkpoint


def logits_of(model: Checkpoint, ids: Sequence[int]) -> Float32:
    """Logits [tokens, vocabulary] of every token of one text."""
    num_blocks = -(-len(ids) // 32)
    backend = TorchBackend(model.graph(), model.weights, num_blocks=num_blocks, block_tokens=32, max_rows=len(ids))
    rows = np.arange(len(ids), dtype=np.int32)
    blocks = np.arange(num_blocks, dtype=np.int32)[None]
    return backend.forward(ForwardBatch(np.array(ids, np.int32), rows, np.zeros_like(rows), blocks, rows))
