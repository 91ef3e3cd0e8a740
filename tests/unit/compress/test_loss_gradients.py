"""Gradients that come back segment by segment are those of the whole graph."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from subsecond.backends.torch.backend import run_ops
from subsecond.compress.loss_gradients import loss_gradients
from subsecond.compress.walk import Walk
from tests.unit.compress.test_walk import tiny_walk


def whole_gradients(walk: Walk, names: list[str]) -> list[np.ndarray]:
    """By torch, through all operators at once."""
    weights = {name: torch.from_numpy(walk.source.dequantize(name).copy()) for name in walk.graph.weights}
    leaves = [weights[name].requires_grad_() for name in names]
    total, count = torch.zeros(()), 0
    for rows, step in walk.chunks():
        values: dict[str, torch.Tensor] = {}
        run_ops(walk.graph.ops, values, weights, step, kept=(walk.graph.output,))
        logits = values[walk.graph.output].unflatten(0, (-1, walk.windows.shape[1]))[:, :-1].flatten(0, 1)
        first = rows.start // walk.windows.shape[1]
        windows = walk.windows[first : first + len(logits) // (walk.windows.shape[1] - 1)]
        targets = torch.from_numpy(windows[:, 1:].astype(np.int64).reshape(-1))
        total = total + torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        count += len(targets)
    return [each.numpy() for each in torch.autograd.grad(total / count, leaves)]


@pytest.mark.parametrize(("family", "rows_together"), [("llama", 2048), ("qwen2", 16)])
def test_they_are_those_of_the_whole_graph(family: str, rows_together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subsecond.compress.walk.CHUNK_ROWS", rows_together)
    monkeypatch.setattr("subsecond.compress.loss_gradients.LOGIT_ROWS", 20)
    walk = tiny_walk(family)
    found: dict[str, list[np.ndarray]] = {}
    told: list[tuple[str, int, int]] = []
    for each in loss_gradients(walk, lambda name: name.endswith("weight"), lambda *step: told.append(step)):
        for name, gradient in each.items():
            assert np.array_equal(gradient.weight, walk.source.dequantize(name))
            found.setdefault(name, []).append(gradient.gradient)
    assert set(found) == {name for name in walk.graph.weights if name.endswith("weight")}
    names = list(found)
    for name, expected in zip(names, whole_gradients(tiny_walk(family), names), strict=True):
        np.testing.assert_allclose(sum(found[name]), expected, rtol=2e-3, atol=1e-6, err_msg=name)
    shares = [done / count for _, done, count in told]
    assert shares == sorted(shares) and shares[-1] < 1


def test_only_what_is_wanted_is_computed() -> None:
    found = list(loss_gradients(tiny_walk(), lambda name: name == "blk.0.ffn_down.weight"))
    assert [set(each) for each in found if each] == [{"blk.0.ffn_down.weight"}]
    assert len(found) == len(tiny_walk().segments)
