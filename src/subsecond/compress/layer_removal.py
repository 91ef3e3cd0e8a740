"""Measures how far a model moves when layers are left out, many candidates in one pass over its weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from subsecond.backends.batch import Int32
from subsecond.compress.importance import Scores
from subsecond.compress.prune_depth import BlockInfluence, layer_of
from subsecond.compress.walk import Visit, Walk
from subsecond.core.errors import UnsupportedError
from subsecond.graph.graph import Graph
from subsecond.graph.segments import Segment
from subsecond.models.weights import WeightSource

Tell = Callable[[int, int], None]


class LayerRemoval:
    """A model on windows int32 [windows, tokens], whole and without some of its layers; fp32 by torch.

    Only one segment's weights are in memory, and one state of the residual stream [rows, width] for each candidate.
    UnsupportedError for a model whose layers are joined by more than one value.
    """

    def __init__(self, graph: Graph, source: WeightSource, windows: Int32) -> None:
        self._walk = Walk(graph, source, windows)
        self._head_walk = Walk(graph, source, windows[:1])
        self._num_windows, self._window_tokens = windows.shape
        *self._body, self._head = range(len(self._walk.segments))
        for segment in self._walk.segments[1:]:
            if len(segment.inputs) != 1 or len(segment.outputs) != 1:
                raise UnsupportedError(
                    f"part {segment.name} of the model reads {len(segment.inputs)} values of others; layers of such "
                    "models cannot be removed. Leave the stage out"
                )
        self._final: Tensor | None = None

    def influence(self, num_layers: int, tell: Tell) -> Scores:
        """Run the whole model once; 1 - E[cos] of each layer (`BlockInfluence`)."""
        found = BlockInfluence(num_layers)
        state, before = torch.empty(0), torch.empty(0)
        for index in self._body:
            tell(index, len(self._body))
            layer = layer_of(self._walk.segments[index].name)
            if self._begins(index):
                before = state
            state = _run(self._walk, Visit(self._walk, index), state)
            if layer is not None and self._ends(index):
                found.add(layer, before.numpy(), state.numpy())
        self._final = state
        return found.scores

    def kl_without(self, removed: Sequence[int], candidates: Sequence[int], tell: Tell) -> list[float]:
        """Mean KL(whole || without `removed` and the candidate) in nats a token, for each candidate.

        `influence` has to have run before, which gives the whole model's state.
        """
        assert self._final is not None, "the whole model has not run"
        base = torch.empty(0)  # the state without `removed`
        states: dict[int, Tensor] = {}
        for index in self._body:
            tell(index, len(self._body) + 1)
            layer = layer_of(self._walk.segments[index].name)
            if layer in removed:
                continue
            if layer is not None and layer in candidates and self._begins(index):
                states[layer] = base
            running = [each for each in states if each != layer]
            visit = Visit(self._walk, index)
            needs_base = any(each not in states or each == layer for each in candidates)
            if needs_base:
                base = _run(self._walk, visit, base)
            for each in running:
                states[each] = _run(self._walk, visit, states[each])
            self._walk.source.release()
        return self._divergences([states[each] for each in candidates])

    def _divergences(self, states: Sequence[Tensor]) -> list[float]:
        assert self._final is not None
        visit = Visit(self._head_walk, self._head)
        totals = torch.zeros(len(states), dtype=torch.float64)
        for window in range(self._num_windows):
            rows = slice(window * self._window_tokens, (window + 1) * self._window_tokens)
            expected = _run(self._head_walk, visit, self._final[rows]).log_softmax(dim=-1)
            probabilities = expected.exp()
            for place, state in enumerate(states):
                found = _run(self._head_walk, visit, state[rows]).log_softmax(dim=-1)
                totals[place] += (probabilities * (expected - found)).sum(dim=-1, dtype=torch.float64).mean()
        return [max(0.0, float(each)) for each in totals / self._num_windows]

    def _begins(self, index: int) -> bool:
        """Whether the segment is the first of its layer."""
        return _layer(self._walk.segments, index) != _layer(self._walk.segments, index - 1)

    def _ends(self, index: int) -> bool:
        return _layer(self._walk.segments, index) != _layer(self._walk.segments, index + 1)


def _layer(parts: Sequence[Segment], index: int) -> int | None:
    return layer_of(parts[index].name) if 0 <= index < len(parts) else None


def _run(walk: Walk, visit: Visit, state: Tensor) -> Tensor:
    """The output of a segment for all rows of `state`, its only input; the first segment has none."""
    segment = visit.segment
    walk.live = dict.fromkeys(segment.inputs, state)
    with torch.no_grad():
        return torch.cat([visit.outputs(rows, step)[segment.outputs[0]] for rows, step in walk.chunks()])
