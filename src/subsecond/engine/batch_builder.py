"""Turn step plans into the arrays that a backend takes; decides nothing.

Most steps are like the one before: the same sequences, each a token further. What stays is kept, so that such a step
costs a few operations on arrays.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np

from subsecond.backends.batch import Float32, ForwardBatch, Int32, SampleBatch
from subsecond.engine.blocks import BlockTable
from subsecond.engine.scheduler import Sequence, Span, StepPlan

# Block tables are made larger than they must be, so that they grow rarely.
SPARE_ROWS = 8
SPARE_BLOCKS = 8


class BatchBuilder:
    """Makes the batches of one engine. Those it returned are valid until it makes the next of their kind."""

    def __init__(self) -> None:
        self._tables: Int32 = np.zeros((0, 0), np.int32)
        self._held: list[tuple[BlockTable, int]] = []  # whose blocks each row of `_tables` holds, and which version
        self._counting: Int32 = np.arange(0, dtype=np.int32)
        self._sampled: list[Sequence] = []
        self._constants: SampleBatch | None = None
        self._has_history = False

    def forward_batch(self, plan: StepPlan) -> ForwardBatch:
        """Return the rows of a plan. Entries of a block table past its end are of any block."""
        spans = plan.spans
        block_tables = self._block_tables(spans)
        counting = self._count_to(plan.num_rows)
        if plan.num_rows == len(spans):  # one row each
            token_ids = [sequence.token_ids[start] for sequence, start, _, _ in spans]
            positions = [span.start for span in spans]
            row_sequence = counting
            logits_rows = [row for row, span in enumerate(spans) if span.wants_logits]
        else:
            token_ids, positions, logits_rows = [], [], []
            for sequence, start, end, wants_logits in spans:
                token_ids += sequence.token_ids[start:end]
                positions += range(start, end)
                if wants_logits:
                    logits_rows.append(len(token_ids) - 1)
            row_sequence = np.repeat(self._counting[: len(spans)], [span.end - span.start for span in spans])
        return ForwardBatch(
            token_ids=np.array(token_ids, np.int32),
            positions=np.array(positions, np.int32),
            row_sequence=row_sequence,
            block_tables=block_tables,
            logits_rows=counting if len(logits_rows) == plan.num_rows else np.array(logits_rows, np.int32),
        )

    def sample_batch(self, sequences: list[Sequence]) -> SampleBatch:
        """Return how to draw the next token of each sequence; history is empty where no penalty needs it."""
        batch = self._constants
        if batch is None or sequences != self._sampled:
            batch = self._constants = _constants_of(sequences)
            self._sampled = sequences
            self._has_history = any(sequence.history is not None for sequence in sequences)
        batch.position[:] = [len(sequence.token_ids) for sequence in sequences]
        if not self._has_history:
            return batch
        histories = [sequence.history or {} for sequence in sequences]
        return replace(
            batch,
            history_offsets=_offsets(histories),
            history_ids=_int32(token_id for history in histories for token_id in history),
            history_counts=_int32(count for history in histories for count in history.values()),
        )

    def _block_tables(self, spans: list[Span]) -> Int32:
        """Block tables [spans, blocks], of which only those rows are written that are not there already."""
        held = self._held
        for row, span in enumerate(spans):
            table = span.sequence.table
            assert table is not None
            wanted = (table, table.version)
            if row == len(held):
                held.append(wanted)
            elif held[row] != wanted:
                held[row] = wanted
            else:
                continue
            self._write_row(row, table.blocks)
        return self._tables[: len(spans)]

    def _write_row(self, row: int, blocks: list[int]) -> None:
        num_rows, width = self._tables.shape
        if row >= num_rows or len(blocks) > width:
            grown = np.zeros((max(num_rows, row + SPARE_ROWS), max(width, len(blocks) + SPARE_BLOCKS)), np.int32)
            grown[:num_rows, :width] = self._tables
            self._tables = grown
        self._tables[row, : len(blocks)] = blocks

    def _count_to(self, count: int) -> Int32:
        if count > len(self._counting):
            self._counting = np.arange(count, dtype=np.int32)
        return self._counting[:count]


def _constants_of(sequences: list[Sequence]) -> SampleBatch:
    """How to draw, without histories and positions, which alone change from step to step."""
    params = [sequence.request.params for sequence in sequences]
    biases = [item.logit_bias for item in params]
    return SampleBatch(
        temperature=_float32(item.temperature for item in params),
        top_k=_int32(item.top_k for item in params),
        top_p=_float32(item.top_p for item in params),
        min_p=_float32(item.min_p for item in params),
        repetition_penalty=_float32(item.repetition_penalty for item in params),
        presence_penalty=_float32(item.presence_penalty for item in params),
        frequency_penalty=_float32(item.frequency_penalty for item in params),
        seed=np.array([sequence.seed for sequence in sequences], np.uint64),
        sample_index=np.zeros(len(sequences), np.int32),
        position=np.zeros(len(sequences), np.int32),
        bias_offsets=_offsets(biases),
        bias_ids=_int32(token_id for bias in biases for token_id in bias),
        bias_values=_float32(value for bias in biases for value in bias.values()),
        history_offsets=np.zeros(len(sequences) + 1, np.int32),
        history_ids=np.zeros(0, np.int32),
        history_counts=np.zeros(0, np.int32),
        num_logprobs=max(item.num_logprobs for item in params),
    )


def _int32(values: Iterable[int]) -> Int32:
    return np.array(list(values), np.int32)


def _float32(values: Iterable[float]) -> Float32:
    return np.array(list(values), np.float32)


def _offsets(entries: list[Any]) -> Int32:
    return np.array([0, *accumulate(map(len, entries))], np.int32)
