"""A backend whose logits depend on every key/value slot a row may see, so that any wrong block or position shows."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from subsecond.backends.batch import Float32, ForwardBatch, SampleBatch, SampleResult


class FakeBackend:
    """Each slot holds a checksum of its token, its position and the slot before it, as real keys hold their past.

    `before_forward` is called with the batch of each step; it may raise.
    """

    variant = "fake"

    def __init__(
        self,
        *,
        vocab_size: int = 50,
        block_tokens: int = 4,
        num_blocks: int = 64,
        max_rows: int = 512,
        before_forward: Callable[[ForwardBatch], None] = lambda _: None,
    ) -> None:
        self.vocab_size = vocab_size
        self.block_tokens = block_tokens
        self.num_blocks = num_blocks
        self.max_rows = max_rows
        self.before_forward = before_forward
        self.num_closed = 0
        self.num_rows: list[int] = []
        self._slots = np.zeros(num_blocks * block_tokens, np.uint32)
        self._logits = np.zeros((0, vocab_size), np.float32)
        self._next_positions: list[int] = []

    def forward(self, batch: ForwardBatch) -> Float32:
        check_batch(batch, self)
        self.before_forward(batch)
        self.num_rows.append(batch.num_rows)
        wanted = set(batch.logits_rows.tolist())
        logits = []
        for row, (token, position, sequence) in enumerate(
            zip(batch.token_ids.tolist(), batch.positions.tolist(), batch.row_sequence.tolist(), strict=True)
        ):
            places = np.arange(position + 1)
            blocks = batch.block_tables[sequence][places // self.block_tokens]
            slots = blocks * self.block_tokens + places % self.block_tokens
            past = self._slots[slots[:-1]]
            own = np.array([token, position, past[-1] if position else 7], np.uint32)
            self._slots[slots[-1]] = zlib.crc32(own.tobytes())
            if row in wanted:
                state = zlib.crc32(self._slots[slots].tobytes())
                logits.append(np.random.default_rng(state).normal(size=self.vocab_size) * 3)
        self._next_positions = (batch.positions[batch.logits_rows] + 1).tolist()
        self._logits = np.array(logits, np.float32).reshape(len(logits), self.vocab_size)
        return self._logits

    def sample(self, batch: SampleBatch) -> SampleResult:
        assert len(batch.temperature) == len(self._logits)
        assert batch.position.tolist() == self._next_positions
        results = [self._sample_row(batch, row) for row in range(len(self._logits))]
        return SampleResult(
            token_ids=np.array([token for token, _, _ in results], np.int32),
            logprobs=np.array([logprobs[token] for token, logprobs, _ in results], np.float32),
            top_ids=np.array([top for _, _, top in results], np.int32),
            top_logprobs=np.array([logprobs[top] for _, logprobs, top in results], np.float32),
            failed_rows=tuple(row for row in range(len(self._logits)) if self._is_failed(batch, row)),
        )

    def close(self) -> None:
        self.num_closed += 1

    def _sample_row(self, batch: SampleBatch, row: int) -> tuple[int, Float32, NDArray[np.intp]]:
        logits: Float32 = self._logits[row].copy()
        biases = slice(batch.bias_offsets[row], batch.bias_offsets[row + 1])
        logits[batch.bias_ids[biases]] += batch.bias_values[biases]
        seen = slice(batch.history_offsets[row], batch.history_offsets[row + 1])
        ids, counts = batch.history_ids[seen], batch.history_counts[seen]
        penalty = batch.repetition_penalty[row]
        logits[ids] = np.where(logits[ids] > 0, logits[ids] / penalty, logits[ids] * penalty)
        logits[ids] -= batch.presence_penalty[row] * (counts > 0) + batch.frequency_penalty[row] * counts
        logprobs: Float32 = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
        if batch.temperature[row] > 0:
            state = [int(batch.seed[row]), int(batch.sample_index[row]), int(batch.position[row])]
            logits = logits / batch.temperature[row] + np.random.default_rng(state).gumbel(size=self.vocab_size)
        if batch.mask_rows is not None and batch.mask_rows[row] >= 0:
            logits[~self._allowed(batch, row)] = -np.inf
        token = int(logits.argmax())
        if batch.forced_ids is not None and batch.forced_ids[row] >= 0:
            token = int(batch.forced_ids[row])
        return token, logprobs, np.argsort(-logprobs, kind="stable")[: batch.num_logprobs]

    def _allowed(self, batch: SampleBatch, row: int) -> NDArray[np.bool_]:
        assert batch.masks is not None
        assert batch.mask_rows is not None
        bits = np.unpackbits(batch.masks[batch.mask_rows[row]].view(np.uint8), bitorder="little")
        return bits[: self.vocab_size].astype(np.bool_)

    def _is_failed(self, batch: SampleBatch, row: int) -> bool:
        is_masked = batch.mask_rows is not None and batch.mask_rows[row] >= 0
        return is_masked and not self._allowed(batch, row).any()


def check_batch(batch: ForwardBatch, backend: FakeBackend) -> None:
    """Assert what the ForwardBatch promises."""
    for array in (batch.token_ids, batch.positions, batch.row_sequence, batch.block_tables, batch.logits_rows):
        assert array.dtype == np.int32
    assert 0 < batch.num_rows <= backend.max_rows
    assert len(batch.positions) == len(batch.row_sequence) == batch.num_rows
    assert ((batch.block_tables >= 0) & (batch.block_tables < backend.num_blocks)).all()
    assert sorted(set(batch.row_sequence.tolist())) == list(range(len(batch.block_tables)))
    steps = np.diff(batch.row_sequence)
    assert (steps >= 0).all()
    assert (np.diff(batch.positions)[steps == 0] == 1).all()
    assert (np.diff(batch.logits_rows) > 0).all()
    slots = batch.block_tables[batch.row_sequence, batch.positions // backend.block_tokens] * backend.block_tokens
    slots += batch.positions % backend.block_tokens
    assert len(set(slots.tolist())) == batch.num_rows, "two rows of a step write the same slot"
