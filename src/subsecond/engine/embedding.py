"""Texts as token ids to one vector each, by an embedding model on a backend; keeps nothing between calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from subsecond.backends.batch import Float32, ForwardBatch, Int32
from subsecond.backends.protocol import Backend
from subsecond.core.errors import InputError
from subsecond.models.config import Pooling


def embed_sequences(backend: Backend, sequences: Sequence[Sequence[int]], pooling: Pooling) -> Float32:
    """Unit vectors float32 [sequences, width]: the pooled hidden rows of each sequence of token ids, in their order.

    Short sequences share steps, and no sequence is cut over two: encoders see a whole text at once. Nobody else may use
    the backend's blocks meanwhile. A sequence that is empty or longer than a step is an InputError.
    """
    vectors = np.empty((len(sequences), backend.vocab_size), np.float32)
    for indices in _steps(backend, sequences):
        batch = _batch(backend, [sequences[index] for index in indices])
        hidden = backend.forward(batch)
        for place, index in enumerate(indices):
            vectors[index] = _pool(hidden[batch.row_sequence == place], pooling)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    units: Float32 = vectors / np.maximum(norms, np.float32(1e-12))
    return units


def _steps(backend: Backend, sequences: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Indices of the sequences of each step, by length, so that steps are full."""
    max_tokens = min(backend.max_rows, backend.num_blocks * backend.block_tokens)
    step: list[int] = []
    num_rows = num_blocks = 0
    for index in sorted(range(len(sequences)), key=lambda i: len(sequences[i])):
        length = len(sequences[index])
        if not 1 <= length <= max_tokens:
            raise InputError(f"text {index} has {length} tokens; this model embeds texts of 1 to {max_tokens}")
        blocks = -(-length // backend.block_tokens)
        if step and (num_rows + length > backend.max_rows or num_blocks + blocks > backend.num_blocks):
            yield step
            step, num_rows, num_blocks = [], 0, 0
        step.append(index)
        num_rows, num_blocks = num_rows + length, num_blocks + blocks
    if step:
        yield step


def _batch(backend: Backend, sequences: Sequence[Sequence[int]]) -> ForwardBatch:
    """All rows of the sequences, each from position 0 in blocks of its own."""
    lengths = [len(sequence) for sequence in sequences]
    num_blocks = [-(-length // backend.block_tokens) for length in lengths]
    tables: Int32 = np.zeros((len(sequences), max(num_blocks)), np.int32)
    first = 0
    for table, count in zip(tables, num_blocks, strict=True):
        table[:count] = np.arange(first, first + count)
        first += count
    return ForwardBatch(
        token_ids=np.concatenate([np.asarray(sequence, np.int32) for sequence in sequences]),
        positions=np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]),
        row_sequence=np.repeat(np.arange(len(sequences), dtype=np.int32), lengths),
        block_tables=tables,
        logits_rows=np.arange(sum(lengths), dtype=np.int32),
    )


def _pool(rows: Float32, pooling: Pooling) -> Float32:
    pooled: Float32 = rows[0] if pooling == "first" else rows[-1]
    if pooling == "mean":
        pooled = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    return pooled
