"""How much the rows of a segment count: an error matters relative to the residual stream that it is added to.

The next norm divides by the size of the stream, and with it the error. Without weights the few tokens of massive
activations (Sun et al. 2024, arXiv 2402.17762), whose streams are thousands of times larger, decide alone which errors
are avoided. Inputs of attention count alike: the keys and values of such a token reach all others.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from subsecond.compress.statistics import InputStatistics, StatisticsSum
from subsecond.compress.walk import Visit
from subsecond.graph.ops import Attention, Linear


def row_weights(visit: Visit, stream: Tensor | None = None) -> Tensor:
    """1 / mean square of the stream behind the segment: float32 [rows], mean 1.

    That is `stream` [rows, width], or where it is not known what the segment gives with its weights as they are.
    """
    if stream is not None:
        squares = stream.square().mean(dim=1).to(torch.float64)
    else:
        names = visit.segment.outputs
        found = [
            torch.stack([values[name].square().mean(dim=1) for name in names]).sum(dim=0)
            for _, _, values in visit.reach(names)
        ]
        squares = torch.cat(found).to(torch.float64)
    weights = 1.0 / torch.clamp(squares, min=1e-12 * float(squares.max()) + 1e-30)
    return (weights / weights.mean()).to(torch.float32)


def weighted_statistics(
    visit: Visit, values: Collection[str], weights: Tensor | None, *, has_gram: bool, is_kept: bool = False
) -> dict[str, InputStatistics]:
    """Statistics of those values that linears read, with the segment's weights as they now are.

    weights  of the rows, from `row_weights`; rows of inputs of attention count 1. None for 1 throughout
    is_kept  as in `Visit.reach`
    """
    roots = None if weights is None else weights.sqrt()[:, None]
    alike = inputs_of_attention(visit)
    sums: dict[str, StatisticsSum] = {}
    num_seen: dict[str, int] = dict.fromkeys(values, 0)

    def add(name: str, rows: Tensor) -> None:
        if name not in sums:
            sums[name] = StatisticsSum(rows.shape[1], has_gram=has_gram)
        start = num_seen[name]
        num_seen[name] = start + len(rows)
        sums[name].add(rows if roots is None or name in alike else rows * roots[start : start + len(rows)])

    visit.observe(add, values, is_kept=is_kept)
    return {name: each.statistics() for name, each in sums.items()}


def inputs_of_attention(visit: Visit) -> frozenset[str]:
    """Values that linears before an attention read."""
    ops = visit.segment.ops
    last = max((index for index, op in enumerate(ops) if isinstance(op, Attention)), default=0)
    return frozenset(op.input for op in ops[:last] if isinstance(op, Linear))
