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
from subsecond.engine.masks import StepMasks
from subsecond.engine.request import SamplingParams
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
            token_ids = [span.sequence.token_ids[span.start] for span in spans]
            positions = [span.start for span in spans]
            row_sequence = counting
            logits_rows = [row for row, span in enumerate(spans) if span.logits_start < span.end]
        else:
            token_ids, positions, logits_rows = [], [], []
            for sequence, start, end, logits_start, _ in spans:
                logits_rows += range(len(token_ids) + logits_start - start, len(token_ids) + end - start)
                token_ids += sequence.token_ids[start:end]
                positions += range(start, end)
            row_sequence = np.repeat(self._counting[: len(spans)], [span.end - span.start for span in spans])
        return ForwardBatch(
            token_ids=np.array(token_ids, np.int32),
            positions=np.array(positions, np.int32),
            row_sequence=row_sequence,
            block_tables=block_tables,
            logits_rows=counting if len(logits_rows) == plan.num_rows else np.array(logits_rows, np.int32),
        )

    def sample_batch(self, plan: StepPlan, masks: StepMasks | None = None) -> SampleBatch:
        """Return how to draw the next token of each sequence; history is empty where no penalty needs it.

        Rows before the last one of a span are of its prompt: their token is known, and no bias or penalty concerns it.
        """
        if any(span.end - span.logits_start > span.is_sampled for span in plan.spans):
            batch = _batch_with_prompts(plan)
            owners = [
                span.sequence if span.is_sampled and position == span.end - 1 else None
                for span in plan.spans
                for position in range(span.logits_start, span.end)
            ]
        else:
            sequences = [span.sequence for span in plan.spans if span.is_sampled]
            batch = self._batch_of(sequences)
            owners = [*sequences]
        if masks is None:
            return batch
        rows = [masks.row_by_sequence.get(owner, -1) if owner is not None else -1 for owner in owners]
        return replace(batch, mask_rows=np.array(rows, np.int32), masks=masks.masks)

    def _batch_of(self, sequences: list[Sequence]) -> SampleBatch:
        """One row a sequence, by what was kept from the step before if they are the same."""
        batch = self._constants
        if batch is None or sequences != self._sampled:
            batch = self._constants = _constants_of([(item, item.request.params) for item in sequences])
            self._sampled = sequences
            self._has_history = any(sequence.history is not None for sequence in sequences)
        batch.position[:] = [len(sequence.token_ids) for sequence in sequences]
        return _with_histories(batch, [item.history for item in sequences]) if self._has_history else batch

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


def _batch_with_prompts(plan: StepPlan) -> SampleBatch:
    """The rows of a step of which some are for the log-probabilities of prompts."""
    rows: list[tuple[Sequence, SamplingParams]] = []
    histories: list[dict[int, int] | None] = []
    positions, forced = [], []
    for sequence, _, end, logits_start, is_sampled in plan.spans:
        for position in range(logits_start, end):
            is_drawn = is_sampled and position == end - 1
            is_known = not is_drawn and position + 1 < len(sequence.token_ids)
            forced.append(sequence.token_ids[position + 1] if is_known else -1)
            positions.append(position + 1)
            params = sequence.request.params
            neutral = SamplingParams(num_logprobs=params.num_prompt_logprobs or 0)
            rows.append((sequence, params if is_drawn else neutral))
            histories.append(sequence.history if is_drawn else None)
    batch = _constants_of(rows)
    batch.position[:] = positions
    return replace(_with_histories(batch, histories), forced_ids=np.array(forced, np.int32))


def _with_histories(batch: SampleBatch, histories: list[dict[int, int] | None]) -> SampleBatch:
    """The batch with what was in prompts and answers, where a penalty needs it."""
    seen = [history or {} for history in histories]
    return replace(
        batch,
        history_offsets=_offsets(seen),
        history_ids=_int32(token_id for history in seen for token_id in history),
        history_counts=_int32(count for history in seen for count in history.values()),
    )


def _constants_of(rows: list[tuple[Sequence, SamplingParams]]) -> SampleBatch:
    """How to draw, without histories and positions, which alone change from step to step."""
    params = [item for _, item in rows]
    biases = [item.logit_bias for item in params]
    return SampleBatch(
        temperature=_float32(item.temperature for item in params),
        top_k=_int32(item.top_k for item in params),
        top_p=_float32(item.top_p for item in params),
        min_p=_float32(item.min_p for item in params),
        repetition_penalty=_float32(item.repetition_penalty for item in params),
        presence_penalty=_float32(item.presence_penalty for item in params),
        frequency_penalty=_float32(item.frequency_penalty for item in params),
        seed=np.array([sequence.seed for sequence, _ in rows], np.uint64),
        sample_index=_int32(sequence.request.sample_index for sequence, _ in rows),
        position=np.zeros(len(rows), np.int32),
        bias_offsets=_offsets(biases),
        bias_ids=_int32(token_id for bias in biases for token_id in bias),
        bias_values=_float32(value for bias in biases for value in bias.values()),
        history_offsets=np.zeros(len(rows) + 1, np.int32),
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
