"""Log-likelihoods over HTTP, asked for as lm-eval's local-completions does, against those of our own evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import subsecond
from subsecond.measure.evaluation import forward_windows
from subsecond.measure.windows import windows_of_text
from tests.arch.source_tree import ROOT
from tests.contract.serve.live_server import LiveServer
from tests.e2e.conftest import SMALL_MODEL

pytestmark = pytest.mark.real_model

NUM_CONTEXT_TOKENS = 15
WINDOW_TOKENS = 21
BATCH = 20


def parsed(reply: dict[str, Any], num_context: int) -> list[tuple[float, bool]]:
    """Sum over the continuation and whether it is the likeliest, without the one token that was generated."""
    found = []
    for choice in sorted(reply["choices"], key=lambda each: each["index"]):
        values = choice["logprobs"]["token_logprobs"][num_context:-1]
        tops = choice["logprobs"]["top_logprobs"][num_context:-1]
        found.append((sum(values), all(v == max(top.values()) for v, top in zip(values, tops, strict=True))))
    return found


@pytest.mark.parametrize("num_items", [20, pytest.param(100, marks=pytest.mark.acceptance)])
def test_loglikelihoods_are_those_of_our_own_evaluation(
    smollm2_server: LiveServer, smollm2_path: Path, num_items: int
) -> None:
    text = (ROOT / "tests" / "data" / "moby_dick.txt").read_text(encoding="utf-8")
    with subsecond.load(smollm2_path, context_tokens=256) as model:
        windows = windows_of_text(text, model.encode, num_items, WINDOW_TOKENS)
        expected = []
        for window, logits in zip(windows, forward_windows(model.backend, windows), strict=True):
            rows = logits[NUM_CONTEXT_TOKENS - 1 : -1].astype(np.float64)
            rows -= rows.max(axis=1, keepdims=True)
            rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
            wanted = window[NUM_CONTEXT_TOKENS:]
            values = rows[np.arange(len(wanted)), wanted]
            expected.append((values.sum(), bool((values == rows.max(axis=1)).all())))
    found: list[tuple[float, bool]] = []
    with smollm2_server.client(timeout=300) as client:
        for start in range(0, num_items, BATCH):
            body = {
                "model": SMALL_MODEL,
                "prompt": windows[start : start + BATCH].tolist(),
                "temperature": 0,
                "max_tokens": 1,
                "logprobs": 1,
                "seed": 1234,
                "echo": True,
            }
            response = client.post("/v1/completions", json=body)
            assert response.status_code == 200, response.text
            found += parsed(response.json(), NUM_CONTEXT_TOKENS)
    assert [is_greedy for _, is_greedy in found] == [is_greedy for _, is_greedy in expected]
    assert np.abs(np.array([a for a, _ in found]) - np.array([a for a, _ in expected])).max() < 1e-3
