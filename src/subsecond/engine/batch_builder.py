"""Turn a step plan into the arrays that a backend takes; decides nothing."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subsecond.backends.batch import Float32, ForwardBatch, Int32, SampleBatch
from subsecond.engine.scheduler import Sequence, StepPlan


def forward_batch(plan: StepPlan) -> ForwardBatch:
    """Return the rows of a plan. Block tables are as wide as the longest of them; entries past a table's end are 0."""
    token_ids: list[int] = []
    positions: list[int] = []
    row_sequence: list[int] = []
    logits_rows: list[int] = []
    tables = [span.sequence.table.blocks if span.sequence.table is not None else [] for span in plan.spans]
    block_tables = np.zeros((len(tables), max(map(len, tables))), np.int32)
    for index, span in enumerate(plan.spans):
        token_ids += span.sequence.token_ids[span.start : span.end]
        positions += range(span.start, span.end)
        row_sequence += [index] * (span.end - span.start)
        block_tables[index, : len(tables[index])] = tables[index]
        if span.wants_logits:
            logits_rows.append(len(token_ids) - 1)
    return ForwardBatch(
        token_ids=_int32(token_ids),
        positions=_int32(positions),
        row_sequence=_int32(row_sequence),
        block_tables=block_tables,
        logits_rows=_int32(logits_rows),
    )


def sample_batch(sequences: list[Sequence]) -> SampleBatch:
    """Return how to draw the next token of each sequence; history is empty where no penalty needs it."""
    params = [sequence.request.params for sequence in sequences]
    biases = [item.logit_bias for item in params]
    histories = [sequence.history or {} for sequence in sequences]
    return SampleBatch(
        temperature=_float32(item.temperature for item in params),
        top_k=_int32([item.top_k for item in params]),
        top_p=_float32(item.top_p for item in params),
        min_p=_float32(item.min_p for item in params),
        repetition_penalty=_float32(item.repetition_penalty for item in params),
        presence_penalty=_float32(item.presence_penalty for item in params),
        frequency_penalty=_float32(item.frequency_penalty for item in params),
        seed=np.array([sequence.seed for sequence in sequences], np.uint64),
        sample_index=np.zeros(len(sequences), np.int32),
        position=_int32([len(sequence.token_ids) for sequence in sequences]),
        bias_offsets=_offsets(biases),
        bias_ids=_int32([token_id for bias in biases for token_id in bias]),
        bias_values=_float32(value for bias in biases for value in bias.values()),
        history_offsets=_offsets(histories),
        history_ids=_int32([token_id for history in histories for token_id in history]),
        history_counts=_int32([count for history in histories for count in history.values()]),
        num_logprobs=max(item.num_logprobs for item in params),
    )


def _int32(values: list[int]) -> Int32:
    return np.array(values, np.int32)


def _float32(values: Iterable[float]) -> Float32:
    return np.array(list(values), np.float32)


def _offsets(entries: list[Any]) -> NDArray[np.int32]:
    return np.array([0, *accumulate(map(len, entries))], np.int32)
