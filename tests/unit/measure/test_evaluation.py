"""How windows become steps of a backend."""

from __future__ import annotations

import numpy as np
import pytest

from subsecond.backends.batch import Float32, ForwardBatch, SampleBatch, SampleResult
from subsecond.core.errors import InputError
from subsecond.measure.evaluation import evaluate, forward_windows

WINDOWS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]], dtype=np.int32)


class NextTokenBackend:
    """Its logits say "token + 1 (modulo 10)", and it overwrites them at each step, as a backend may."""

    vocab_size, block_tokens, num_blocks, max_rows, variant = 10, 2, 3, 4, "fake"

    def __init__(self) -> None:
        self.batches: list[ForwardBatch] = []
        self._buffer = np.empty((self.max_rows, self.vocab_size), dtype=np.float32)

    def forward(self, batch: ForwardBatch) -> Float32:
        self.batches.append(batch)
        logits = self._buffer[: batch.num_rows]
        logits[:] = 0
        logits[np.arange(batch.num_rows), (batch.token_ids + 1) % 10] = 5
        return logits

    def sample(self, batch: SampleBatch) -> SampleResult:
        raise AssertionError(f"evaluation draws no tokens, but got {batch}")

    def close(self) -> None:
        pass


@pytest.mark.parametrize(("chunk", "sizes"), [(None, [4, 1]), (4, [4, 1]), (2, [2, 2, 1]), (1, [1] * 5)])
def test_each_window_runs_from_position_0_in_chunks(chunk: int | None, sizes: list[int]) -> None:
    backend = NextTokenBackend()
    tops = [logits.argmax(axis=1) for logits in forward_windows(backend, WINDOWS, chunk)]
    np.testing.assert_array_equal(tops, (WINDOWS + 1) % 10)
    assert [batch.num_rows for batch in backend.batches] == sizes * 2
    half = len(sizes)
    for batches in (backend.batches[:half], backend.batches[half:]):
        positions = np.concatenate([batch.positions for batch in batches])
        np.testing.assert_array_equal(positions, np.arange(5))
    for batch in backend.batches:
        np.testing.assert_array_equal(batch.block_tables, [[0, 1, 2]])
        np.testing.assert_array_equal(batch.logits_rows, np.arange(batch.num_rows))


def test_limits_of_the_backend_are_told() -> None:
    with pytest.raises(InputError, match=r"chunk=5 .* give 1 to 4"):
        next(forward_windows(NextTokenBackend(), WINDOWS, 5))
    with pytest.raises(InputError, match="7 tokens needs 4 blocks of 2, the backend has 3"):
        next(forward_windows(NextTokenBackend(), np.zeros((1, 7), dtype=np.int32)))


def test_two_backends_are_compared() -> None:
    report = evaluate(NextTokenBackend(), NextTokenBackend(), WINDOWS)
    assert (report.num_windows, report.num_tokens) == (2, 8)
    assert report.mean_kl.value == 0
    assert report.perplexity.value == pytest.approx(np.exp(5) + 9, rel=0.01)
