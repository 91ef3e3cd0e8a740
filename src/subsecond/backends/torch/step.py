"""Turns a ForwardBatch into tensors on the device, computed once and read by every layer; runs no operator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from subsecond.backends.batch import ForwardBatch, Int32
from subsecond.backends.torch import ops
from subsecond.graph.graph import Graph
from subsecond.graph.ops import Attention, Rope, Rotary

Int64 = NDArray[np.int64]
RotaryTables = Mapping[Rotary, tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Span:
    """Rows [start, end) of the step, which continue one sequence; `past_slots` is where its earlier tokens are kept."""

    start: int
    end: int
    past_slots: Tensor


@dataclass(frozen=True, slots=True)
class Step:
    """The rows of one step on the device. A slot is a token's place in the pool: block * block_tokens + offset.

    token_ids, positions, slots int64 [rows]; selected_rows int64 [selected rows]; rotary_tables [rows, pairs].
    """

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    selected_rows: Tensor
    spans: tuple[Span, ...]
    rotary_tables: RotaryTables


def rotaries_of(graph: Graph) -> tuple[Rotary, ...]:
    """The different rotary embeddings of a graph, wherever a pass has put them."""
    found = (op.rotary for op in graph.ops if isinstance(op, Rope | Attention))
    return tuple(dict.fromkeys(rotary for rotary in found if rotary is not None))


def make_step(
    batch: ForwardBatch,
    block_tokens: int,
    rotaries: Iterable[Rotary],
    weights: Mapping[str, Tensor],
    device: torch.device,
    table_dtype: torch.dtype,
) -> Step:
    """Tensors of `batch`; each sequence's rows have to be adjacent, at consecutive positions."""
    positions = batch.positions.astype(np.int64)
    slots = _slots(batch.block_tables[batch.row_sequence], positions, block_tokens)
    rows_on_cpu = torch.from_numpy(positions)
    tables = {}
    for rotary in rotaries:
        factors = weights[rotary.frequency_factors] if rotary.frequency_factors else None
        cosines, sines = ops.rotary_tables(rows_on_cpu, rotary.frequencies, rotary.magnitude, factors)
        tables[rotary] = cosines.to(device=device, dtype=table_dtype), sines.to(device=device, dtype=table_dtype)
    return Step(
        token_ids=_to_device(batch.token_ids, device),
        positions=rows_on_cpu.to(device),
        slots=_to_device(slots, device),
        selected_rows=_to_device(batch.logits_rows, device),
        spans=_spans(batch, positions, block_tokens, device),
        rotary_tables=tables,
    )


def _spans(batch: ForwardBatch, positions: Int64, block_tokens: int, device: torch.device) -> tuple[Span, ...]:
    boundaries = np.flatnonzero(np.diff(batch.row_sequence)) + 1
    edges = [0, *boundaries.tolist(), batch.num_rows]
    spans = []
    for start, end in pairwise(edges):
        first = int(positions[start])
        is_consecutive = np.array_equal(positions[start:end], np.arange(first, first + end - start))
        assert is_consecutive, f"rows {start} to {end} of one sequence are not at consecutive positions"
        table = batch.block_tables[batch.row_sequence[start]]
        past = np.arange(first, dtype=np.int64)
        spans.append(Span(start, end, _to_device(_slots(table, past, block_tokens), device)))
    return tuple(spans)


def _slots(blocks: Int32, positions: Int64, block_tokens: int) -> Int64:
    """Slots of `positions`; `blocks` is one block table, or one for each position."""
    index = positions // block_tokens
    block = np.take(blocks, index) if blocks.ndim == 1 else blocks[np.arange(len(index)), index]
    return block.astype(np.int64) * block_tokens + positions % block_tokens


def _to_device(indices: NDArray[np.signedinteger], device: torch.device) -> Tensor:
    return torch.from_numpy(indices.astype(np.int64)).to(device)
