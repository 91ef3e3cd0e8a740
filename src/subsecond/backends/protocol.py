"""What an engine may ask of a backend; the native and the torch backend both answer it."""

from __future__ import annotations

from typing import Protocol

from subsecond.backends.batch import Float32, ForwardBatch, SampleBatch, SampleResult


class Backend(Protocol):
    """One model on one device with its key/value blocks. Not thread-safe: one step at a time."""

    @property
    def vocab_size(self) -> int:
        """Width of a row of logits."""

    @property
    def block_tokens(self) -> int:
        """Positions that one key/value block holds."""

    @property
    def num_blocks(self) -> int:
        """Key/value blocks in the pool, numbered from 0."""

    @property
    def max_rows(self) -> int:
        """Most rows that one step may have."""

    @property
    def variant(self) -> str:
        """What decides the bits of an answer (weight reading, arithmetic, key/value type); a prefix-cache key."""

    def forward(self, batch: ForwardBatch) -> Float32:
        """Run one step; float32 logits [selected rows, vocab_size], valid until the next step."""

    def sample(self, batch: SampleBatch) -> SampleResult:
        """Draw from the logits of the last step, one token a selected row."""

    def close(self) -> None:
        """Free weights and blocks; the backend cannot be used afterwards."""
