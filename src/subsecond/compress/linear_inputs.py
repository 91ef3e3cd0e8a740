"""What one linear of a segment reads, and what the segment's output lacks to that of the original; changes nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from subsecond.backends.torch.backend import run_ops
from subsecond.compress.statistics import Floats, InputStatistics, StatisticsSum
from subsecond.compress.walk import Visit, end_of
from subsecond.graph.ops import Add, Linear
from subsecond.graph.segments import Segment


def statistics_of(visit: Visit, weight: str, *, has_gram: bool = True) -> InputStatistics:
    """Statistics of the value that one linear reads, with the segment's weights as they are."""
    value = next(value for value, names in visit.segment.linears.items() if weight in names)
    total = StatisticsSum(visit.weights[weight].shape[1], has_gram=has_gram)

    def add(name: str, rows: torch.Tensor) -> None:
        if name == value:
            total.add(rows)

    visit.observe(add)
    return total.statistics()


def writes_stream(segment: Segment, weight: str) -> bool:
    """Whether what a linear gives is added to the residual stream as it is, with nothing but an addition after it."""
    output = next(op.output for op in segment.ops if isinstance(op, Linear) and weight in op.weights)
    readers = [op for op in segment.ops if isinstance(op, Add) and output in (op.left, op.right)]
    return len(readers) == 1 and readers[0].output in segment.outputs and len(segment.outputs) == 1


def input_and_loss(
    visit: Visit, weight: str, original: Tensor, row_weights: Tensor | None = None
) -> tuple[InputStatistics, Floats]:
    """Statistics of what a linear reads, and E[d x^T] [out, in] of d, what the segment's output lacks to `original`.

    `original` is that of `OriginalStream.after`; the segment runs with its weights as they are. `row_weights` float32
    [rows] say how much each row counts; None for 1.
    """
    roots = None if row_weights is None else row_weights.sqrt()[:, None]
    op = next(op for op in visit.segment.ops if isinstance(op, Linear) and weight in op.weights)
    (output,) = visit.segment.outputs
    total = StatisticsSum(visit.weights[weight].shape[1], has_gram=True)
    cross = torch.zeros(visit.weights[weight].shape)
    rest = visit.segment.ops[end_of(visit.segment, (op.input,)) :]
    with torch.no_grad():
        for rows, step, values in visit.reach((op.input,), is_kept=True):
            run_ops(rest, values, visit.weights, step, kept=(op.input, output))
            read, lost = values[op.input], original[rows] - values[output]
            if roots is not None:
                read, lost = read * roots[rows], lost * roots[rows]
            total.add(read)
            cross.addmm_(lost.T, read)
    return total.statistics(), (cross / len(original)).numpy()
