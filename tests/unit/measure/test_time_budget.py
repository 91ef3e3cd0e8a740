"""The parts of a request's time add up, and the time of a step is where it belongs."""

from __future__ import annotations

import time
from dataclasses import fields

import pytest

from subsecond.backends.batch import ForwardBatch
from subsecond.measure.time_budget import NUM_RUNS, measure_request
from tests.unit.engine.fake_backend import FakeBackend


class Letters:
    """Takes longer for a token than the engine, beside whose steps it could be."""

    def token_bytes(self, token_id: int) -> bytes:
        time.sleep(0.01)
        return bytes([65 + token_id % 26])

    def is_special(self, _: int) -> bool:
        return False


def test_slow_prompts_are_prefill_and_slow_steps_decode() -> None:
    batches: list[int] = []

    def slow(batch: ForwardBatch) -> None:
        batches.append(batch.num_rows)
        time.sleep(0.02 if batch.num_rows > 1 else 0.002)

    backend = FakeBackend(max_rows=4, before_forward=slow)
    found = measure_request(backend, lambda: [1, 2, 3, 4, 5, 6], Letters(), 5)
    # two steps of the prompt, then one a token: nothing of it is kept for the next run
    assert batches == [4, 2, 1, 1, 1, 1] * (NUM_RUNS + 1)
    assert (found.num_prompt_tokens, found.num_new_tokens) == (6, 5)
    assert found.prefill_ms >= 40 and found.decode_ms >= 8
    parts = [field.name for field in fields(found) if field.name.endswith("_ms")]
    parts = [name for name in parts if name not in ("total_ms", "ttft_ms", "tpot_ms")]
    assert sum(getattr(found, name) for name in parts) == pytest.approx(found.total_ms, rel=1e-6)
    assert found.prefill_ms <= found.ttft_ms <= found.total_ms
    assert backend.num_closed == 0
