"""Measures what single changes of a model cost: mean KL of each, all in one walk with one segment in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from subsecond.backends.torch.backend import run_ops
from subsecond.compress.walk import Visit, Walk

LOGIT_ROWS = 256  # whose logits are in memory at once, twice

States = dict[str, Tensor]
# The weights of a visit's segment that the change of that name replaces.
Change = Callable[[Visit, str], Mapping[str, Tensor]]


def change_losses(
    walk: Walk,
    names: Mapping[int, Sequence[str]],
    change: Change,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, float]:
    """Mean KL(original || changed) in nats over all rows of the windows, of each change alone.

    names     of the changes, by the number of the segment that they are in
    change    gives the weights of a change, when its segment is visited
    progress  is told the segment's name, its number and how many there are

    Every change is a stream of states of its own from its segment on: rows x width floats for each.
    """
    changed: dict[str, States] = {}
    for visit in walk.visits():
        if progress is not None:
            progress(visit.segment.name, visit.index, len(walk.segments))
        if walk.graph.output in visit.segment.outputs:
            losses = {name: _mean_kl(walk, visit, states) for name, states in changed.items()}
            visit.advance()
            return losses
        before = dict(walk.live)
        for name, states in changed.items():
            changed[name] = _run(walk, visit, states, visit.weights)
        for name in names.get(visit.index, ()):
            changed[name] = _run(walk, visit, before, {**visit.weights, **change(visit, name)})
        visit.advance()
    raise AssertionError("the graph has no output head")


def _run(walk: Walk, visit: Visit, states: States, weights: Mapping[str, Tensor]) -> States:
    """The states behind the segment, from those before it and with these weights."""
    original = walk.live
    found: dict[str, list[Tensor]] = {name: [] for name in visit.segment.outputs}
    walk.live = states
    try:
        with torch.no_grad():
            for rows, step in walk.chunks():
                for name, value in visit.outputs(rows, step, weights).items():
                    found[name].append(value)
    finally:
        walk.live = original
    kept = walk.read_after(visit.index)
    behind = {**states, **{name: torch.cat(parts) for name, parts in found.items()}}
    return {name: value for name, value in behind.items() if name in kept}


def _mean_kl(walk: Walk, visit: Visit, states: States) -> float:
    """Mean over rows of the divergence of the logits that `states` give from those of the walk itself."""
    _, step = next(iter(walk.chunks()))
    num_rows, total = walk.windows.size, 0.0
    with torch.no_grad():
        for start in range(0, num_rows, LOGIT_ROWS):
            rows = slice(start, min(start + LOGIT_ROWS, num_rows))
            selected = replace(step, selected_rows=torch.arange(rows.stop - rows.start))
            logits = []
            for source in (walk.live, states):
                values = {name: source[name][rows] for name in visit.segment.inputs}
                run_ops(visit.segment.ops, values, visit.weights, selected, kept=visit.segment.outputs)
                logits.append(values[walk.graph.output].log_softmax(dim=-1))
            original, other = logits
            total += float((original.exp() * (original - other)).sum(dim=-1).sum(dtype=torch.float64))
    return max(total / num_rows, 0.0)
