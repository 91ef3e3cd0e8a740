"""A reference that reads and predicts fewer tokens than it has, to compare a model of a trimmed vocabulary with it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from subsecond.backends.batch import Float32, ForwardBatch, SampleBatch, SampleResult
from subsecond.backends.protocol import Backend
from subsecond.compress.importance import Indices


class RestrictedReference:
    """`backend` with the tokens `kept` alone, int64 ids in its own numbering; implements `backends.protocol.Backend`.

    Its logits are those of the tokens that stay, so what it assigned to others is shared out in proportion.
    """

    def __init__(self, backend: Backend, kept: Indices) -> None:
        self._backend = backend
        self._kept = kept

    @property
    def vocab_size(self) -> int:
        """Number of tokens that stay."""
        return len(self._kept)

    @property
    def block_tokens(self) -> int:
        """As of the whole backend."""
        return self._backend.block_tokens

    @property
    def num_blocks(self) -> int:
        """As of the whole backend."""
        return self._backend.num_blocks

    @property
    def max_rows(self) -> int:
        """As of the whole backend."""
        return self._backend.max_rows

    @property
    def variant(self) -> str:
        """As of the whole backend."""
        return self._backend.variant

    def forward(self, batch: ForwardBatch) -> Float32:
        """Run one step; float32 logits [selected rows, kept tokens]."""
        logits = self._backend.forward(replace(batch, token_ids=self._kept[batch.token_ids].astype(np.int32)))
        found: Float32 = logits[:, self._kept]
        return found

    def sample(self, batch: SampleBatch) -> SampleResult:
        """References answer nothing."""
        raise AssertionError(f"a reference was asked for an answer: {batch}")

    def close(self) -> None:
        """Free the whole backend."""
        self._backend.close()
