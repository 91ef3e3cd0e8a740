"""Gradients of the loss on calibration text by weights, one segment in memory at a time; judges no weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from subsecond.backends.torch.backend import run_ops
from subsecond.backends.torch.step import Step
from subsecond.compress.change_losses import LOGIT_ROWS
from subsecond.compress.statistics import Floats
from subsecond.compress.walk import Visit, Walk

_NO_TARGET = -100  # what torch leaves out of a cross entropy


@dataclass(frozen=True, slots=True, eq=False)
class WeightGradient:
    """A weight and the gradient of the loss by it, float32 of one shape."""

    weight: Floats
    gradient: Floats


def loss_gradients(
    walk: Walk, wanted: Callable[[str], bool], progress: Callable[[str, int, int], None] | None = None
) -> Iterator[dict[str, WeightGradient]]:
    """Of every segment from the last to the first, those of its weights that are `wanted`.

    The loss is the mean of -log p(next token) in nats over the windows. What each segment reads is kept from a walk
    forward, rows x width floats for each; segments are then run anew, with their gradients, on the way back.
    """
    read: list[Mapping[str, Tensor]] = []
    for visit in walk.visits():
        _tell(progress, visit, len(walk.segments), visit.index)
        read.append({name: walk.live[name] for name in visit.segment.inputs})
        visit.advance()
    targets = torch.full(walk.windows.shape, _NO_TARGET)
    targets[:, :-1] = torch.from_numpy(walk.windows[:, 1:].astype(np.int64))
    behind: dict[str, Tensor] = {}  # gradients of the loss by values of the stream
    for index in reversed(range(len(walk.segments))):
        visit = Visit(walk, index)
        _tell(progress, visit, len(walk.segments), 2 * len(walk.segments) - index - 1)
        found = _go_back(walk, visit, read[index], behind, targets.reshape(-1), wanted)
        read.pop()
        walk.source.release()
        yield found


def _tell(progress: Callable[[str, int, int], None] | None, visit: Visit, count: int, done: int) -> None:
    if progress is not None:
        progress(f"gradients of {visit.segment.name}", done, 2 * count)


def _go_back(
    walk: Walk,
    visit: Visit,
    read: Mapping[str, Tensor],
    behind: dict[str, Tensor],
    targets: Tensor,
    wanted: Callable[[str], bool],
) -> dict[str, WeightGradient]:
    """The gradients of one segment; those of its outputs in `behind` make place for those of its inputs."""
    segment, is_head = visit.segment, walk.graph.output in visit.segment.outputs
    chosen = {name: visit.weights[name].requires_grad_() for name in segment.weights if wanted(name)}
    totals = {name: torch.zeros_like(value) for name, value in chosen.items()}
    before = {name: torch.zeros_like(value) for name, value in read.items()}
    for rows, step in _head_chunks(walk) if is_head else walk.chunks():
        leaves = {name: value[rows].detach().requires_grad_() for name, value in read.items()}
        values = dict(leaves)
        run_ops(segment.ops, values, visit.weights, step, kept=segment.outputs)
        parameters = [*leaves.values(), *chosen.values()]
        if not parameters:
            break
        if is_head:
            loss = torch.nn.functional.cross_entropy(
                values[walk.graph.output], targets[rows], ignore_index=_NO_TARGET, reduction="sum"
            )
            found = torch.autograd.grad(loss / (targets != _NO_TARGET).sum(), parameters)
        else:
            outputs = [values[name] for name in segment.outputs]
            found = torch.autograd.grad(outputs, parameters, [behind[name][rows] for name in segment.outputs])
        for name, gradient in zip(leaves, found, strict=False):
            before[name][rows] = gradient
        for name, gradient in zip(chosen, found[len(leaves) :], strict=True):
            totals[name] += gradient
    for name in segment.outputs:
        behind.pop(name, None)
    for name, gradient in before.items():
        behind[name] = behind[name] + gradient if name in behind else gradient
    return {name: WeightGradient(chosen[name].detach().numpy(), total.numpy()) for name, total in totals.items()}


def _head_chunks(walk: Walk) -> Iterator[tuple[slice, Step]]:
    """Few rows at a time, as each gets a logit for every token."""
    _, step = next(iter(walk.chunks()))
    for start in range(0, walk.windows.size, LOGIT_ROWS):
        rows = slice(start, min(start + LOGIT_ROWS, walk.windows.size))
        yield rows, replace(step, selected_rows=torch.arange(rows.stop - rows.start))
